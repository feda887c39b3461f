/** A cell while it runs: what it has called so far, and how often. Drawn anew at each look, so small. */

import { html, svg } from './charts/dom';
import { clip, count, seconds } from './format';
import type { Running } from './session';

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
  const calls = (name: string): number =>
    running.stretches.reduce((sum, one) => sum + (one.name === name ? one.calls : 0), 0);
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
    html('ul', {}, ...names.map(name => html('li', {}, `${clip(name, 24)} × ${count(calls(name))}`)))
  );
}
