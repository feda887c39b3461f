import { expect, it } from 'vitest';
import { kinds, liveView } from '../src/live';

const running = {
  name: 'agent',
  elapsed_s: 3,
  stretches: [
    { name: 'embed', start_s: 0, end_s: 0.5, calls: 1 },
    { name: 'prefill', start_s: 0.5, end_s: 1, calls: 1 },
    { name: 'decode', start_s: 1, end_s: 3, calls: 40 },
    { name: 'prefill', start_s: 3, end_s: 3, calls: 1 }
  ]
};

it('a cell that runs shows what it has called, the latest last', () => {
  expect(kinds(running)).toEqual(['embed', 'decode', 'prefill']);
  const view = liveView(running);
  expect(view.textContent).toContain('agent: 3.00 s');
  expect(view.textContent).toContain('decode × 40');
  expect(view.textContent).toContain('prefill × 2');
  expect(view.querySelectorAll('rect').length).toBe(4);
});

it('a cell that has called nothing yet shows its clock', () => {
  const view = liveView({ name: 'agent', elapsed_s: 0, stretches: [] });
  expect(view.textContent).toContain('agent: 0 s');
  expect(view.querySelectorAll('rect').length).toBe(0);
});
