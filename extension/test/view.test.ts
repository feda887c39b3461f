import { describe, expect, it } from 'vitest';
import { bars, zoomed } from '../src/charts/timeline';
import { placed } from '../src/charts/roofline';
import { carried } from '../src/charts/graph';
import { amount, clip, seconds, share } from '../src/format';
import { readForm } from '../src/model';
import { runView } from '../src/view';
import { form } from './form';

describe('what a page is given', () => {
  it.each([null, undefined, 3, 'run', [], {}, { schema: 'other/1' }])(
    '%j is no run, and is said so',
    data => {
      expect(readForm(data)).toMatch(/no run/);
      expect(runView(data).textContent).toMatch(/no run/);
    }
  );

  it('is of another version', () => {
    expect(runView({ ...form(), schema: 'gimlet.display/9' }).textContent).toMatch(
      /install the same version/
    );
  });

  it.each(['timeline', 'stages', 'roofline', 'graph', 'operators', 'phases', 'finding', 'notes'] as const)(
    'is damaged where %s is missing',
    part => {
      expect(runView({ ...form(), [part]: undefined }).textContent).toMatch(/damaged/);
    }
  );

  it('is text, whatever it holds', () => {
    const name = '<img src=x onerror=alert(1)><script>alert(2)</script>';
    const bad = form({ finding: name, notes: [name], summary: [name] });
    bad.stages.forEach(stage => (stage.id = name));
    bad.timeline.lanes = [name, name];
    bad.operators.forEach(one => (one.op = name));
    const view = runView(bad);
    expect(view.querySelector('script, img')).toBeNull();
    expect(view.textContent).toContain(name);
  });

  it.each(['مرحبا', '👩‍🔬🧪', 'x'.repeat(10_000)])('may be named %.20s', name => {
    const view = runView(form({ finding: name }));
    expect(view.querySelector('.gimlet-lead')?.textContent).toBe(name);
  });
});

describe('the timeline', () => {
  it('has a bar for each phase, where it was', () => {
    expect(bars(form().timeline)).toEqual([
      { lane: 0, stage: 'embed', bound: 'compute', start: 0, duration: 0.2, warm: true },
      { lane: 1, stage: 'search', bound: 'wait', start: 0.2, duration: 0.2, warm: false }
    ]);
  });

  it('has what the meters said below the phases, broken where nothing was read', () => {
    const strip = { device: 'cuda:0', reading: 'power', unit: 'W', most: 400 };
    const timeline = {
      ...form().timeline,
      strips: [{ ...strip, time_s: [0, 0.1, 0.2, 0.3, 0.4], value: [100, 300, null, 200, 400] }]
    };
    const view = runView(form({ timeline }));
    expect(view.querySelectorAll('.gimlet-said-by-meter')).toHaveLength(2);
    const meters = Array.from(view.querySelectorAll('table')).find(
      one => one.caption?.textContent === 'Meters'
    );
    expect(meters?.tBodies[0]?.textContent).toBe('cuda:0power100 W250 W400 W');
    const bad = { ...strip, device: '<b>x', most: 0, time_s: [NaN], value: [null, Infinity] };
    expect(
      runView(form({ timeline: { ...timeline, strips: [bad] } })).querySelector('b, .gimlet-said-by-meter')
    ).toBeNull();
  });

  it('leaves out what has no time', () => {
    const timeline = form().timeline;
    timeline.marks.start_s = [NaN, 0.2];
    timeline.marks.duration_s = [0.2, 0];
    expect(bars(timeline)).toEqual([]);
  });

  it('says so where there is nothing', () => {
    const empty = form().timeline;
    for (const column of Object.values(empty.marks)) {
      column.length = 0;
    }
    expect(runView(form({ timeline: { ...empty, lanes: [] } })).textContent).toContain('No phase was found');
  });

  it('zooms around a moment and stays inside the whole', () => {
    expect(zoomed([0, 10], 10, 2, 5)).toEqual([2.5, 7.5]);
    expect(zoomed([0, 10], 10, 2, 0)).toEqual([0, 5]);
    expect(zoomed([8, 10], 10, 0.5, 10)).toEqual([6, 10]);
    expect(zoomed([2, 3], 10, 0.01, 2.5)).toEqual([0, 10]);
  });

  it('zooms and pans by its buttons', () => {
    const view = runView(form());
    const ticks = (): string[] =>
      Array.from(
        view.querySelectorAll('.gimlet-figure:first-of-type .gimlet-tick'),
        tick => tick.textContent ?? ''
      );
    const before = ticks();
    view.querySelector<HTMLButtonElement>('[aria-label="Zoom in"]')?.click();
    expect(ticks()).not.toEqual(before);
    view.querySelector<HTMLButtonElement>('[aria-label="Show all"]')?.click();
    expect(ticks()).toEqual(before);
  });
});

describe('the roofline', () => {
  it.each([null, 0, -1, NaN, Infinity])('has no place for an intensity of %s', value => {
    const [point] = form().roofline.points;
    expect(point && placed([{ ...point, intensity: value }])).toEqual([]);
  });

  it('says so where no stage has a place', () => {
    const roofline = { ...form().roofline, points: [] };
    expect(runView(form({ roofline })).textContent).toContain('nothing to place on a roofline');
  });
});

describe('the graph', () => {
  it('names the largest of what an edge carries, and all of its bytes', () => {
    const both = [
      { tensor: 'ids', bytes: 8, known: 'tensor' },
      { tensor: 'past_key_values', bytes: 2e9, known: 'tensor' }
    ];
    expect(carried(both)).toEqual(['past_key_val…', '2.00 GB']);
    expect(carried([{ tensor: 'order', bytes: 0, known: 'order' }])).toBeNull();
  });
});

describe('a selection', () => {
  it('is the same in all charts, by mouse and by keyboard', () => {
    const view = runView(form());
    const marks = Array.from(view.querySelectorAll<SVGElement>('.gimlet-mark'));
    const pressed = (): string[] =>
      marks
        .filter(mark => mark.getAttribute('aria-pressed') === 'true')
        .map(mark => mark.getAttribute('aria-label') ?? '');
    expect(marks.length).toBe(5);
    marks[0]?.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter' }));
    expect(pressed().length).toBe(3);
    expect(pressed().every(label => label.startsWith('embed:'))).toBe(true);
    expect(view.querySelector('.gimlet-said')?.textContent).toMatch(/^embed: compute/);
    expect(view.querySelector('tr.gimlet-chosen th')?.textContent).toBe('embed');
    marks[0]?.dispatchEvent(new MouseEvent('click'));
    expect(pressed()).toEqual([]);
  });
});

describe('numbers', () => {
  it('have three digits and a unit, and a dash where nobody knows', () => {
    expect([0, 1.234, 0.0123, 4.5e-6, 300, null, NaN].map(seconds)).toEqual([
      '0 s',
      '1.23 s',
      '12.3 ms',
      '4.50 µs',
      '5 min 0 s',
      '–',
      '–'
    ]);
    expect([amount(0, 'B'), amount(999, 'B'), amount(1.5e12, 'FLOP/s'), amount(1e30, 'B')]).toEqual([
      '0 B',
      '999 B',
      '1.50 TFLOP/s',
      '1000000000000 EB'
    ]);
    expect([share(0.5), share(0.012), share(null)]).toEqual(['50%', '1.2%', '–']);
    expect([clip('abc', 3), clip('abcd', 3)]).toEqual(['abc', 'ab…']);
  });
});

it('a million operators are drawn as their hundred largest rows', () => {
  const [row] = form().operators;
  const operators = Array.from({ length: 1_000_000 }, () => row as NonNullable<typeof row>);
  const view = runView(form({ operators }));
  expect(view.querySelectorAll('details tbody tr').length).toBe(100);
  expect(view.textContent).toContain('the first 100 shown');
});
