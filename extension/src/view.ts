/** A run as a person sees it: what was found, the charts side by side, and tables with the same numbers. */

import { html, table } from './charts/dom';
import { graphChart } from './charts/graph';
import { rooflineChart } from './charts/roofline';
import { Selection } from './charts/selection';
import { MARKS, timelineChart } from './charts/timeline';
import { amount, count, seconds, share } from './format';
import { type Form, type Stage, readForm } from './model';

/** What is shown where there is nothing to draw, with what to do about it. */
export function empty(text: string): HTMLElement {
  return html('div', { class: 'gimlet-view' }, html('p', { class: 'gimlet-empty', role: 'status' }, text));
}

function legend(form: Form): HTMLElement {
  const chips = form.phases.by_bound.map(({ bound, seconds: took, share: part }) =>
    html(
      'li',
      {},
      html('span', { class: `gimlet-chip gimlet-${bound}`, 'aria-hidden': 'true' }, MARKS[bound] ?? ''),
      `${bound} ${share(part)} `,
      html('span', { class: 'gimlet-quiet' }, seconds(took))
    )
  );
  return html('ul', { class: 'gimlet-legend', 'aria-label': 'Time by what held it back' }, ...chips);
}

function stageTable(stages: Stage[], selection: Selection): HTMLElement {
  const heads = [
    'Stage',
    'Bound',
    'Calls',
    'Per call',
    'Total',
    'Of run',
    'FLOP/s',
    'Bandwidth',
    'Energy',
    'Device'
  ];
  const made = table(
    'Stages',
    heads,
    stages.map(stage => [
      stage.id,
      stage.bound ? `${MARKS[stage.bound] ?? ''} ${stage.bound}` : '–',
      count(stage.calls),
      seconds(stage.call_s),
      seconds(stage.total_s),
      share(stage.share),
      amount(stage.flops_per_s, 'FLOP/s'),
      amount(stage.bytes_per_s, 'B/s'),
      amount(stage.joules, 'J'),
      stage.device ?? '–'
    ])
  );
  const rows = Array.from(made.tBodies[0]?.rows ?? []);
  selection.listen(chosen =>
    rows.forEach((row, index) => row.classList.toggle('gimlet-chosen', stages[index]?.id === chosen))
  );
  return html('div', { class: 'gimlet-scroll', tabindex: '0', role: 'region', 'aria-label': 'Stages' }, made);
}

function operatorTable(form: Form): HTMLElement {
  const rows = form.operators
    .slice(0, 100)
    .map(one => [
      one.op,
      one.stage,
      one.dtype || '–',
      count(one.calls),
      seconds(one.total_s),
      amount(one.flops, 'FLOP'),
      amount(one.bytes, 'B')
    ]);
  const more = form.operators.length - rows.length;
  return html(
    'details',
    {},
    html(
      'summary',
      {},
      `Operators (${form.operators.length}${more > 0 ? `, the first ${rows.length} shown` : ''})`
    ),
    html(
      'div',
      { class: 'gimlet-scroll', tabindex: '0', role: 'region', 'aria-label': 'Operators' },
      table('Operators', ['Operator', 'Stage', 'Dtype', 'Calls', 'Time', 'FLOPs', 'Bytes'], rows)
    )
  );
}

/** Draws a run from whatever claims to be one; never throws for what it was given. */
export function runView(data: unknown): HTMLElement {
  const form = readForm(data);
  if (typeof form === 'string') {
    return empty(form);
  }
  try {
    return drawn(form);
  } catch (error) {
    return empty(`This run could not be drawn: ${error instanceof Error ? error.message : String(error)}`);
  }
}

function drawn(form: Form): HTMLElement {
  const selection = new Selection();
  const said = html('p', { class: 'gimlet-said', 'aria-live': 'polite' });
  selection.listen(chosen => {
    const stage = form.stages.find(one => one.id === chosen);
    said.textContent = stage
      ? `${stage.id}: ${stage.bound ?? 'unknown'}, ${seconds(stage.total_s)} in ${count(stage.calls)} calls, ${share(stage.share)} of the run`
      : '';
  });
  const began = form.started.replace('T', ' ').replace(/\.\d+.*$/, ' UTC');
  return html(
    'div',
    { class: 'gimlet-view' },
    html('p', { class: 'gimlet-lead' }, form.finding),
    html(
      'p',
      { class: 'gimlet-quiet' },
      `${form.device.name} · ${began} · profiling took ${seconds(form.overhead_s)} of ${seconds(form.duration_s)}${form.status === 'ok' ? '' : ` · ${form.status}`}`
    ),
    legend(form),
    timelineChart(form.timeline, selection),
    html(
      'div',
      { class: 'gimlet-pair' },
      rooflineChart(form.roofline, selection),
      graphChart(form, selection)
    ),
    said,
    stageTable(form.stages, selection),
    form.summary.length
      ? html('ul', { class: 'gimlet-list' }, ...form.summary.map(line => html('li', {}, line)))
      : null,
    operatorTable(form),
    form.notes.length
      ? html(
          'details',
          {},
          html('summary', {}, `Notes (${form.notes.length})`),
          html('ul', { class: 'gimlet-list' }, ...form.notes.map(line => html('li', {}, line)))
        )
      : null
  );
}
