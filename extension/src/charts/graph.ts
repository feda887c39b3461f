/** Stages and the data between them, in the layers that the kernel laid them out in. */

import { amount, clip, seconds } from '../format';
import type { Carried, Form } from '../model';
import { html, svg, table } from './dom';
import { Selection, selectable } from './selection';

const BOX = { width: 118, height: 46 };
const GAP = { x: 78, y: 22 };
const EDGE = 10;

/** The largest of what an edge carries, and the bytes of all of it; nothing for an edge of order only. */
export function carried(carries: Carried[]): [string, string] | null {
  const known = carries.filter(one => one.known !== 'order');
  const total = known.reduce((sum, one) => sum + (one.bytes ?? 0), 0);
  const largest = known.reduce<Carried | null>(
    (best, one) => (best && (best.bytes ?? 0) >= (one.bytes ?? 0) ? best : one),
    null
  );
  return largest ? [clip(largest.tensor, 13), amount(total, 'B')] : null;
}

export function graphChart(form: Form, selection: Selection): HTMLElement {
  const { nodes, edges } = form.graph;
  const slots = nodes.map(node => node.slot).filter(Number.isFinite);
  const top = slots.length ? Math.min(...slots) : 0;
  const rows = slots.length ? Math.max(...slots) - top + 1 : 1;
  const layers = Math.max(1, form.graph.layers);
  const width = layers * BOX.width + (layers - 1) * GAP.x + 2 * EDGE;
  const height = rows * (BOX.height + GAP.y) + 2 * EDGE + (edges.some(edge => edge.back) ? 26 : 0);
  const place = (index: number): { x: number; y: number } => {
    const node = nodes[index];
    return {
      x: EDGE + (node?.layer ?? 0) * (BOX.width + GAP.x),
      y: EDGE + ((node?.slot ?? 0) - top) * (BOX.height + GAP.y) + 8
    };
  };
  const marks: SVGElement[] = [
    svg(
      'defs',
      {},
      svg(
        'marker',
        {
          id: 'gimlet-arrow',
          viewBox: '0 0 8 8',
          refX: 7,
          refY: 4,
          markerWidth: 7,
          markerHeight: 7,
          orient: 'auto'
        },
        svg('path', { d: 'M0,0 L8,4 L0,8 z', class: 'gimlet-head' })
      )
    )
  ];
  for (const edge of edges) {
    const [from, to] = [place(edge.from), place(edge.to)];
    const [x1, y1] = [from.x + BOX.width, from.y + BOX.height / 2];
    const [x2, y2] = [to.x, to.y + BOX.height / 2];
    const bend = Math.max(24, (x2 - x1) / 2);
    const low = height - EDGE - 4;
    const path = edge.back
      ? `M${from.x + BOX.width / 2},${from.y + BOX.height} C${from.x + BOX.width / 2},${low} ${to.x + BOX.width / 2},${low} ${to.x + BOX.width / 2},${to.y + BOX.height}`
      : `M${x1},${y1} C${x1 + bend},${y1} ${x2 - bend},${y2} ${x2},${y2}`;
    const label = carried(edge.carries);
    const names = edge.carries.map(one => `${one.tensor} ${amount(one.bytes, 'B')} (${one.known})`);
    marks.push(
      svg(
        'path',
        {
          d: path,
          class: `gimlet-edge${label ? '' : ' gimlet-order'}`,
          'marker-end': 'url(#gimlet-arrow)'
        },
        svg('title', {}, names.join('\n'))
      )
    );
    if (label && !edge.back) {
      const [x, y] = [(x1 + x2) / 2, (y1 + y2) / 2];
      marks.push(
        svg('text', { x, y: y - 8, class: 'gimlet-tick gimlet-halo' }, label[0]),
        svg('text', { x, y: y + 9, class: 'gimlet-tick gimlet-halo' }, label[1])
      );
    }
  }
  nodes.forEach((node, index) => {
    const stage = form.stages[node.stage];
    if (!stage) {
      return;
    }
    const { x, y } = place(index);
    const label = `${stage.id}: ${stage.bound ?? 'unknown'}, ${seconds(stage.total_s)} on ${stage.device ?? 'no device'}`;
    const mark = svg(
      'g',
      {},
      svg('title', {}, label),
      svg('rect', { x, y, width: BOX.width, height: BOX.height, rx: 5, class: 'gimlet-box' }),
      svg('rect', { x, y, width: 6, height: BOX.height, rx: 3, class: `gimlet-${stage.bound ?? 'idle'}` }),
      svg('text', { x: x + 14, y: y + 18, class: 'gimlet-node' }, clip(stage.id, 14)),
      svg(
        'text',
        { x: x + 14, y: y + 34, class: 'gimlet-small' },
        clip(`${seconds(stage.total_s)} · ${stage.device ?? '–'}`, 19)
      )
    );
    selectable(mark, stage.id, label, selection);
    marks.push(mark);
  });
  const name = (index: number): string => form.stages[nodes[index]?.stage ?? -1]?.id ?? '?';
  return html(
    'figure',
    { class: 'gimlet-figure', style: `flex-basis: ${Math.max(320, width)}px` },
    html('figcaption', {}, 'Stages and what goes between them'),
    nodes.length
      ? svg(
          'svg',
          {
            viewBox: `0 0 ${width} ${height}`,
            class: 'gimlet-chart',
            style: `max-width: ${width * 1.15}px`,
            role: 'group',
            'aria-label': 'Graph of stages'
          },
          ...marks
        )
      : html('p', { class: 'gimlet-empty' }, 'No stage was found in this run.'),
    table(
      'Edges',
      ['From', 'To', 'Carries'],
      edges.map(edge => [name(edge.from), name(edge.to), carried(edge.carries)?.join(' ') ?? 'order only']),
      true
    )
  );
}
