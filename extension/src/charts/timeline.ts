/** Phases over time: a lane for each stage, a bar for each phase, coloured and marked by what held it back. */

import { scaleLinear } from 'd3-scale';
import { amount, clip, seconds, share } from '../format';
import type { Strip, Timeline } from '../model';
import { html, polylines, svg, table } from './dom';
import { Selection, selectable } from './selection';

export interface Bar {
  stage: string;
  bound: string;
  start: number;
  duration: number;
  lane: number;
  warm: boolean;
}

const WIDTH = 960;
const NARROWEST = 320;
const LANE = 26;
const AXIS = 26;
const STRIP = 30;

/** Shapes besides colours, in the middle of bars that are wide enough. */
export const MARKS: Record<string, string> = {
  bandwidth: '●',
  compute: '▲',
  overhead: '■',
  wait: '◆',
  transfer: '▶',
  idle: '○'
};

/** The phases of a timeline; those without a finite time are left out. */
export function bars(timeline: Timeline): Bar[] {
  const { marks, lanes, bounds } = timeline;
  return marks.lane
    .map((lane, index) => ({
      lane,
      stage: lanes[lane] ?? '?',
      bound: bounds[marks.bound[index] ?? -1] ?? 'idle',
      start: marks.start_s[index] ?? NaN,
      duration: marks.duration_s[index] ?? NaN,
      warm: Boolean(marks.warmup[index])
    }))
    .filter(bar => Number.isFinite(bar.start) && bar.duration > 0);
}

/** Part of a domain, zoomed around a moment and kept inside the whole. */
export function zoomed(
  [from, to]: [number, number],
  whole: number,
  factor: number,
  around: number
): [number, number] {
  const length = Math.min(whole, Math.max((to - from) / factor, whole * 1e-6));
  const start = around - ((around - from) / (to - from || 1)) * length;
  const kept = Math.min(Math.max(0, start), whole - length);
  return [kept, kept + length];
}

/** The least, mean and most of what a meter said, in words. */
export function spread(strip: Strip): string[] {
  const known = strip.value.filter((value): value is number => Number.isFinite(value));
  const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
  return [Math.min(...known), mean, Math.max(...known)].map(value =>
    strip.unit ? amount(value, strip.unit) : share(value)
  );
}

/** What a meter said, in a lane of its own below the phases. */
function stripMarks(
  strip: Strip,
  top: number,
  left: number,
  right: number,
  x: (at: number) => number
): SVGElement[] {
  const name = `${strip.device} ${strip.reading}`;
  const bottom = top + STRIP - 4;
  const most = strip.most > 0 ? strip.most : 1;
  const y = (value: number): number => bottom - (STRIP - 8) * Math.min(1, Math.max(0, value / most));
  // What lies outside is not drawn at its edge: lines would run along it.
  const shown = strip.value.map((value, index) => {
    const at = x(strip.time_s[index] ?? NaN);
    return value !== null && at >= left && at <= right ? ([at, y(value)] as [number, number]) : null;
  });
  const says = strip.unit ? amount(most, strip.unit) : '100%';
  return [
    svg(
      'text',
      { x: left - 8, y: top + STRIP / 2, class: 'gimlet-lane gimlet-small' },
      clip(name, Math.floor(left / 6.5))
    ),
    svg('line', { x1: left, x2: right, y1: bottom, y2: bottom, class: 'gimlet-grid' }),
    ...polylines(shown).map(points =>
      svg('polyline', { points, class: 'gimlet-said-by-meter' }, svg('title', {}, `${name}, at most ${says}`))
    ),
    svg('text', { x: left + 3, y: top + 8, class: 'gimlet-small gimlet-halo' }, says)
  ];
}

export function timelineChart(timeline: Timeline, selection: Selection): HTMLElement {
  const all = bars(timeline);
  const whole = Number.isFinite(timeline.end_s) && timeline.end_s > 0 ? timeline.end_s : 1;
  const strips = timeline.strips ?? [];
  const below = timeline.lanes.length * LANE;
  const height = below + strips.length * STRIP + AXIS;
  let domain: [number, number] = [0, whole];
  let width = WIDTH;
  const left = (): number => Math.min(150, width / 4);
  const picture = svg('svg', {
    class: 'gimlet-chart',
    role: 'group',
    'aria-label': 'Phases by stage over time'
  });

  const draw = (): void => {
    const first = left();
    picture.setAttribute('viewBox', `0 0 ${width} ${height}`);
    const x = scaleLinear()
      .domain(domain)
      .range([first, width - 12]);
    const marks: SVGElement[] = [];
    timeline.lanes.forEach((stage, lane) => {
      const y = lane * LANE + LANE / 2;
      const name = svg('text', { x: first - 8, y, class: 'gimlet-lane' }, clip(stage, Math.floor(first / 7)));
      name.append(svg('title', {}, stage));
      marks.push(
        name,
        svg('line', { x1: first, x2: width - 12, y1: y + 12, y2: y + 12, class: 'gimlet-grid' })
      );
    });
    for (const bar of all) {
      const [from, to] = [bar.start, bar.start + bar.duration];
      if (to < domain[0] || from > domain[1]) {
        continue;
      }
      const start = x(Math.max(from, domain[0]));
      const long = Math.max(0.8, x(Math.min(to, domain[1])) - start);
      const label = `${bar.stage}: ${bar.bound}${bar.warm ? ', warm-up' : ''}, ${seconds(bar.duration)} from ${seconds(bar.start)}`;
      const mark = svg(
        'g',
        {},
        svg('title', {}, label),
        svg('rect', {
          x: start,
          y: bar.lane * LANE + 4,
          width: long,
          height: LANE - 9,
          rx: Math.min(2, long / 2),
          class: `gimlet-${bar.bound}${bar.warm ? ' gimlet-warm' : ''}`
        }),
        long > 18 &&
          svg(
            'text',
            { x: start + long / 2, y: bar.lane * LANE + LANE / 2, class: 'gimlet-shape' },
            MARKS[bar.bound] ?? ''
          )
      );
      selectable(mark, bar.stage, label, selection);
      marks.push(mark);
    }
    strips.forEach((strip, index) =>
      marks.push(...stripMarks(strip, below + index * STRIP, first, width - 12, x))
    );
    for (const tick of x.ticks(Math.max(2, Math.floor(width / 130)))) {
      marks.push(
        svg('line', {
          x1: x(tick),
          x2: x(tick),
          y1: height - AXIS,
          y2: height - AXIS + 5,
          class: 'gimlet-axis'
        }),
        svg('text', { x: x(tick), y: height - 8, class: 'gimlet-tick' }, seconds(tick))
      );
    }
    picture.replaceChildren(...marks);
  };

  const zoom = (factor: number, around = (domain[0] + domain[1]) / 2): void => {
    domain = zoomed(domain, whole, factor, around);
    draw();
  };
  const pan = (part: number): void => {
    const [from, to] = domain;
    const start = Math.min(Math.max(0, from + (to - from) * part), whole - (to - from));
    domain = [start, start + to - from];
    draw();
  };
  picture.addEventListener(
    'wheel',
    event => {
      // A plain wheel scrolls the notebook.
      if (!event.ctrlKey && !event.metaKey) {
        return;
      }
      event.preventDefault();
      const box = picture.getBoundingClientRect();
      const part = ((event.clientX - box.left) / box.width) * width;
      const at = domain[0] + ((part - left()) / (width - 12 - left())) * (domain[1] - domain[0]);
      zoom(event.deltaY < 0 ? 1.3 : 1 / 1.3, at);
    },
    { passive: false }
  );
  const button = (label: string, sign: string, action: () => void): HTMLButtonElement => {
    const made = html('button', { type: 'button', 'aria-label': label, title: label }, sign);
    made.addEventListener('click', action);
    return made;
  };
  draw();
  // Drawn for the place it has, so that its text is as large as that around it.
  if (typeof ResizeObserver !== 'undefined') {
    new ResizeObserver(entries => {
      const has = Math.max(NARROWEST, Math.round(entries[0]?.contentRect.width ?? WIDTH));
      if (has !== width) {
        width = has;
        draw();
      }
    }).observe(picture);
  }
  return html(
    'figure',
    { class: 'gimlet-figure' },
    html(
      'figcaption',
      {},
      'Phases',
      html(
        'span',
        { class: 'gimlet-tools' },
        button('Earlier', '←', () => pan(-0.5)),
        button('Later', '→', () => pan(0.5)),
        button('Zoom in', '+', () => zoom(2)),
        button('Zoom out', '−', () => zoom(0.5)),
        button('Show all', '⤢', () => {
          domain = [0, whole];
          draw();
        })
      )
    ),
    all.length ? picture : html('p', { class: 'gimlet-empty' }, 'No phase was found in this run.'),
    table(
      'Phases',
      ['Stage', 'Bound', 'Start', 'Duration'],
      all.slice(0, 200).map(bar => [bar.stage, bar.bound, seconds(bar.start), seconds(bar.duration)]),
      true
    ),
    strips.length
      ? table(
          'Meters',
          ['Device', 'Reading', 'Least', 'Mean', 'Most'],
          strips.map(strip => [strip.device, strip.reading, ...spread(strip)]),
          true
        )
      : null
  );
}
