/** What devices do now, and did in the last minute. */

import { html, polylines, svg } from './charts/dom';
import { amount, share } from './format';

export interface Meter {
  device: string;
  utilization: number | null;
  memory_used_bytes: number | null;
  memory_total_bytes: number | null;
  power_w: number | null;
  throttled: string | null;
}

/** JupyterLab's translations, or whatever stands for them elsewhere. */
export interface Words {
  __(text: string, ...values: string[]): string;
}

/** Readings that are kept: a minute of them. */
const KEPT = 120;
const WIDTH = 120;
const HEIGHT = 18;

/** How much each device was used in the last readings, the latest last; a device that is gone is forgotten. */
export class History {
  private used = new Map<string, (number | null)[]>();

  add(meters: Meter[]): void {
    this.used = new Map(
      meters.map(one => [one.device, [...(this.used.get(one.device) ?? []), one.utilization].slice(-KEPT)])
    );
  }

  of(device: string): (number | null)[] {
    return this.used.get(device) ?? [];
  }
}

/** The lines of a strip, the latest reading at its right end. */
export function stretches(used: (number | null)[]): string[] {
  const step = WIDTH / (KEPT - 1);
  return polylines(
    used.map((value, index) =>
      value === null
        ? null
        : [
            WIDTH - (used.length - 1 - index) * step,
            HEIGHT - 1 - Math.min(1, Math.max(0, value)) * (HEIGHT - 2)
          ]
    )
  );
}

export function meterList(meters: Meter[], history: History, trans: Words): HTMLElement {
  return html('ul', { class: 'gimlet-devices' }, ...meters.map(meter => device(meter, history, trans)));
}

function device(meter: Meter, history: History, trans: Words): HTMLElement {
  const used = meter.memory_used_bytes;
  const total = meter.memory_total_bytes;
  const facts = [
    used !== null && total ? `${amount(used, 'B')} / ${amount(total, 'B')}` : '',
    meter.power_w !== null ? `${meter.power_w.toFixed(0)} W` : '',
    meter.throttled ? trans.__('throttled: %1', meter.throttled) : ''
  ].filter(Boolean);
  return html(
    'li',
    {},
    html('span', { class: 'gimlet-device' }, meter.device),
    bar(trans.__('use'), meter.utilization),
    strip(history.of(meter.device)),
    bar(trans.__('memory'), used !== null && total ? used / total : null),
    facts.length ? html('span', { class: 'gimlet-quiet' }, facts.join(' · ')) : null
  );
}

/** The bar above it says the same to those who do not see it. */
function strip(used: (number | null)[]): SVGSVGElement | null {
  const lines = stretches(used);
  return lines.length
    ? svg(
        'svg',
        {
          viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
          preserveAspectRatio: 'none',
          class: 'gimlet-strip',
          'aria-hidden': 'true'
        },
        ...lines.map(points => svg('polyline', { points }))
      )
    : null;
}

function bar(name: string, value: number | null): HTMLElement {
  const percent = value === null ? 0 : Math.round(Math.min(1, Math.max(0, value)) * 100);
  return html(
    'span',
    { class: 'gimlet-meter' },
    html('span', {}, name),
    html('progress', {
      max: 100,
      value: percent,
      'aria-label': name,
      class: value === null ? 'gimlet-unknown' : ''
    }),
    html('span', {}, value === null ? '–' : share(value))
  );
}
