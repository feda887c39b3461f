/** A cell while it runs: what it has called so far, and how often. Drawn anew at each look, so small. */

import { html, svg } from './charts/dom';
import { amount, clip, count, seconds } from './format';

/** What a profiled cell has done so far: calls of one kind in a row. */
export interface Running {
  name: string;
  elapsed_s: number;
  stretches: { name: string; start_s: number; end_s: number; calls: number }[];
}

const WIDTH = 220;
const LANE = 16;
const MOST = 6;

/** The kinds of call that ran last, the latest last. */
export function kinds(running: Running): string[] {
  const found: string[] = [];
  for (const { name } of [...running.stretches].reverse()) {
    if (!found.includes(name) && found.length < MOST) {
      found.unshift(name);
    }
  }
  return found;
}

export function liveView(running: Running): HTMLElement {
  const names = kinds(running);
  const first = running.stretches[0]?.start_s ?? 0;
  const scale = WIDTH / Math.max(running.elapsed_s - first, 1e-9);
  const told = (name: string): string => {
    const own = running.stretches.filter(one => one.name === name);
    const calls = own.reduce((sum, one) => sum + one.calls, 0);
    const spent = own.reduce((sum, one) => sum + one.end_s - one.start_s, 0);
    const rate = calls > 1 && spent > 0 ? `, ${amount(calls / spent, '/s')}` : '';
    return `${clip(name, 24)} × ${count(calls)}${rate}`;
  };
  const bars = running.stretches
    .filter(one => names.includes(one.name))
    .map(one =>
      svg('rect', {
        x: (one.start_s - first) * scale,
        y: names.indexOf(one.name) * LANE + 3,
        width: Math.max(1, (one.end_s - one.start_s) * scale),
        height: LANE - 6,
        rx: 1,
        class: 'gimlet-live'
      })
    );
  return html(
    'div',
    { class: 'gimlet-running' },
    html('p', {}, `${clip(running.name, 28)}: ${seconds(running.elapsed_s)}`),
    svg(
      'svg',
      {
        viewBox: `0 0 ${WIDTH} ${Math.max(1, names.length) * LANE}`,
        class: 'gimlet-chart',
        'aria-hidden': 'true'
      },
      ...bars
    ),
    html('ul', {}, ...names.map(name => html('li', {}, told(name))))
  );
}
