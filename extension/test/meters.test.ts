import { expect, it } from 'vitest';
import { History, meterList, stretches, type Meter } from '../src/meters';
import widget, { type Seen } from '../src/widget';

const cpu: Meter = {
  device: 'cpu',
  utilization: 0.5,
  memory_used_bytes: 2e9,
  memory_total_bytes: 8e9,
  power_w: null,
  throttled: null
};

/** A widget's model, as a notebook keeps it. */
function model(seen: Seen) {
  const heard = new Set<() => void>();
  return {
    heard,
    get: () => seen,
    on: (_event: string, callback: () => void) => void heard.add(callback),
    off: (_event: string, callback: () => void) => void heard.delete(callback),
    say(now: Seen) {
      seen = now;
      heard.forEach(callback => callback());
    }
  };
}

it('a strip has the latest reading at its right end, and is broken where nothing was read', () => {
  expect(stretches([0, 1])).toEqual(['119.0,17.0 120.0,1.0']);
  expect(stretches([0, 1, null, NaN, 0.5, 7])).toHaveLength(2);
  expect(stretches([])).toEqual([]);
  expect(stretches([null, 0.5, null])).toEqual([]);
});

it('a minute is kept, of the devices that are there', () => {
  const history = new History();
  for (let turn = 0; turn < 500; turn++) {
    history.add([cpu, { ...cpu, device: `gone ${turn}` }]);
  }
  expect(history.of('cpu')).toHaveLength(120);
  expect(history.of('gone 1')).toEqual([]);
});

it('a device says what it does in words as well', () => {
  const history = new History();
  history.add([cpu]);
  history.add([cpu]);
  const list = meterList([cpu, { ...cpu, device: '<b>', utilization: null }], history, {
    __: text => text
  });
  expect(list.textContent).toContain('2.00 GB / 8.00 GB');
  expect(list.querySelectorAll('progress[aria-label]')).toHaveLength(4);
  expect(list.querySelectorAll('polyline')).toHaveLength(1);
  expect(list.querySelector('b')).toBeNull();
});

it('the widget draws what runs, and nothing once it has ended', () => {
  const el = document.createElement('div');
  const running = {
    name: 'agent',
    elapsed_s: 3,
    stretches: [{ name: 'decode', start_s: 1, end_s: 3, calls: 40 }]
  };
  const told = model({ running, meters: [cpu] });
  const leave = widget.render({ model: told, el });
  expect(el.textContent).toContain('agent: 3.00 s');
  expect(el.textContent).toContain('decode × 40, 20.0 /s');
  told.say({ running: { ...running, elapsed_s: 4 }, meters: [{ ...cpu, throttled: 'power' }] });
  expect(el.textContent).toContain('throttled: power');
  expect(el.querySelectorAll('polyline')).toHaveLength(1);
  told.say({});
  expect(el.textContent).toBe('');
  leave();
  expect(told.heard.size).toBe(0);
});
