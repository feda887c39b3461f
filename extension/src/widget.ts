/** The live view below a cell, in any notebook that shows widgets: what anywidget asks for. */

import { html } from './charts/dom';
import { liveView, type Running } from './live';
import { History, meterList, type Meter, type Words } from './meters';

export interface Seen {
  running?: Running | null;
  meters?: Meter[];
}

export interface Model {
  get(name: 'seen'): Seen;
  on(event: string, callback: () => void): void;
  off(event: string, callback: () => void): void;
}

/** Nobody translates for a widget. */
const trans: Words = {
  __: (text, ...values) => text.replace(/%(\d)/g, (_, number) => values[Number(number) - 1] ?? '')
};

function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  const view = html('div', { class: 'gimlet-widget' });
  const history = new History();
  let name: string | undefined;
  const draw = (): void => {
    const { running, meters = [] } = model.get('seen');
    if (!running) {
      view.replaceChildren();
      return;
    }
    if (name !== running.name) {
      history.add([]); // another cell
      name = running.name;
    }
    history.add(meters);
    view.replaceChildren(liveView(running), ...(meters.length ? [meterList(meters, history, trans)] : []));
  };
  model.on('change:seen', draw);
  draw();
  el.append(view);
  return () => model.off('change:seen', draw);
}

export default { render };
