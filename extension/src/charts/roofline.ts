/** Stages on the roofline of the device: FLOP/s over arithmetic intensity, both logarithmic. */

import { scaleLog } from 'd3-scale';
import { amount, clip, share } from '../format';
import type { Point, Roof, Roofline } from '../model';
import { html, svg, table } from './dom';
import { Selection, selectable } from './selection';
import { MARKS } from './timeline';

const WIDTH = 560;
const HEIGHT = 300;
const FRAME = { left: 46, right: 14, top: 24, bottom: 40 };

/** Points that have a place: both values finite and above zero. */
export function placed(points: Point[]): (Point & { intensity: number; flops_per_s: number })[] {
  return points.filter(
    (point): point is Point & { intensity: number; flops_per_s: number } =>
      Number.isFinite(point.intensity) &&
      Number.isFinite(point.flops_per_s) &&
      (point.intensity ?? 0) > 0 &&
      (point.flops_per_s ?? 0) > 0
  );
}

/** The fastest roof of a kind and tier. */
function highest(roofs: Roof[], kind: string, tier: string): Roof | null {
  const found = roofs.filter(roof => roof.kind === kind && roof.tier === tier && roof.value > 0);
  return found.reduce<Roof | null>((best, roof) => (best && best.value >= roof.value ? best : roof), null);
}

export function rooflineChart(roofline: Roofline, selection: Selection): HTMLElement {
  const points = placed(roofline.points);
  const decade = (range: [number, number], side: 0 | 1): number => 10 ** range[side];
  const x = scaleLog()
    .domain([decade(roofline.x_decades, 0), decade(roofline.x_decades, 1)])
    .range([FRAME.left, WIDTH - FRAME.right]);
  const y = scaleLog()
    .domain([decade(roofline.y_decades, 0), decade(roofline.y_decades, 1)])
    .range([HEIGHT - FRAME.bottom, FRAME.top]);
  const marks: SVGElement[] = [];
  const decades = ([from, to]: [number, number], most: number): number[] => {
    const step = Math.max(1, Math.ceil((to - from) / most));
    return Array.from(
      { length: Math.floor((to - from) / step) + 1 },
      (_, index) => 10 ** (from + index * step)
    );
  };
  for (const tick of decades(roofline.x_decades, 6)) {
    marks.push(
      svg('line', {
        x1: x(tick),
        x2: x(tick),
        y1: FRAME.top,
        y2: HEIGHT - FRAME.bottom,
        class: 'gimlet-grid'
      }),
      svg('text', { x: x(tick), y: HEIGHT - FRAME.bottom + 15, class: 'gimlet-tick' }, `${tick}`)
    );
  }
  for (const tick of decades(roofline.y_decades, 6)) {
    marks.push(
      svg('line', {
        x1: FRAME.left,
        x2: WIDTH - FRAME.right,
        y1: y(tick),
        y2: y(tick),
        class: 'gimlet-grid'
      }),
      svg('text', { x: FRAME.left - 6, y: y(tick), class: 'gimlet-lane' }, amount(tick, ''))
    );
  }
  for (const tier of ['datasheet', 'calibrated']) {
    const bandwidth = highest(roofline.roofs, 'bandwidth', tier);
    const compute = highest(roofline.roofs, 'compute', tier);
    if (!bandwidth || !compute) {
      continue;
    }
    const [low, high] = x.domain() as [number, number];
    const at = (value: number): number => Math.min(compute.value, value * bandwidth.value);
    const ridge = Math.min(high, Math.max(low, compute.value / bandwidth.value));
    const line = [low, ridge, high].map(value => `${x(value)},${y(Math.max(y.domain()[0] ?? 1, at(value)))}`);
    marks.push(
      svg(
        'polyline',
        { points: line.join(' '), class: `gimlet-roof gimlet-roof-${tier}` },
        svg(
          'title',
          {},
          `${tier}: ${amount(bandwidth.value, 'B/s')}, ${amount(compute.value, 'FLOP/s')} ${compute.dtype ?? ''}`
        )
      )
    );
  }
  marks.push(
    svg(
      'text',
      { x: (FRAME.left + WIDTH - FRAME.right) / 2, y: HEIGHT - 6, class: 'gimlet-tick' },
      'arithmetic intensity, FLOP per byte'
    )
  );
  marks.push(svg('text', { x: FRAME.left - 40, y: 9, class: 'gimlet-small' }, 'FLOP/s'));
  const labels: { x: number; y: number }[] = [];
  const named = new Set<string>();
  // The largest first, so that small ones lie above them.
  for (const point of [...points].sort((a, b) => (b.share ?? 0) - (a.share ?? 0))) {
    const [cx, cy] = [x(point.intensity), y(point.flops_per_s)];
    const label = `${point.stage}: ${point.bound}, ${amount(point.flops_per_s, 'FLOP/s')} at ${point.intensity.toPrecision(3)} FLOP per byte, ${share(point.of_roof)} of its roof`;
    const [from, to] = point.interval_flops_per_s ?? [null, null];
    const radius = 6 + 12 * Math.sqrt(point.share ?? 0);
    const before = cx > WIDTH * 0.7;
    const at = { x: before ? cx - radius - 5 : cx + radius + 5, y: cy };
    while (labels.some(other => Math.abs(other.y - at.y) < 12 && Math.abs(other.x - at.x) < 90)) {
      at.y += 12;
    }
    const mark = svg(
      'g',
      {},
      svg('title', {}, label),
      from !== null &&
        to !== null &&
        from > 0 &&
        to > 0 &&
        svg('line', { x1: cx, x2: cx, y1: y(from), y2: y(to), class: `gimlet-line-${point.bound}` }),
      svg('circle', {
        cx,
        cy,
        r: radius,
        class: `gimlet-${point.bound} gimlet-point`
      }),
      svg('text', { x: cx, y: cy, class: 'gimlet-shape' }, MARKS[point.bound] ?? ''),
      !named.has(point.stage) &&
        svg('text', { ...at, class: `gimlet-name${before ? ' gimlet-before' : ''}` }, clip(point.stage, 18))
    );
    if (!named.has(point.stage)) {
      labels.push(at);
      named.add(point.stage);
    }
    selectable(mark, point.stage, label, selection);
    marks.push(mark);
  }
  return html(
    'figure',
    { class: 'gimlet-figure' },
    html('figcaption', {}, 'Roofline'),
    points.length
      ? svg(
          'svg',
          {
            viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
            class: 'gimlet-chart',
            style: `max-width: ${WIDTH * 1.15}px`,
            role: 'group',
            'aria-label': 'Stages on the roofline'
          },
          ...marks
        )
      : html(
          'p',
          { class: 'gimlet-empty' },
          'No stage has both FLOPs and bytes: nothing to place on a roofline.'
        ),
    table(
      'Roofline',
      ['Stage', 'Bound', 'FLOP per byte', 'FLOP/s', 'Of its roof'],
      points.map(point => [
        point.stage,
        point.bound,
        point.intensity.toPrecision(3),
        amount(point.flops_per_s, 'FLOP/s'),
        share(point.of_roof)
      ]),
      true
    )
  );
}
