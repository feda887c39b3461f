/** The panel on the right: devices, runs, the plan and what can be done with it. */

import type { TranslationBundle } from '@jupyterlab/translation';
import type { Message } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';
import { html } from './charts/dom';
import { clip, seconds } from './format';
import { icon } from './icon';
import { liveView } from './live';
import { History, meterList } from './meters';
import type { Session } from './session';

/** What the buttons need of the application. */
export interface Actions {
  profileCell(): void;
  /** A run, by its name or its file's path. */
  show(run: string, title: string): void;
}

export class Panel extends Widget {
  private readonly status: HTMLElement;
  private readonly body: HTMLElement;
  private readonly meters = html('div');
  private readonly live = html('div');
  private readonly history = new History();
  private working = '';
  /** What was chosen in the export form, which is drawn anew with everything. */
  private target: { name: string; options: string } | null = null;
  /** Which of the folded parts are open. */
  private readonly opened = new Set<string>();
  /** The control that had the keyboard until a command took it away. */
  private parked: string | null = null;

  constructor(
    private readonly session: Session,
    private readonly actions: Actions,
    private readonly trans: TranslationBundle
  ) {
    super();
    this.id = 'gimlet-panel';
    this.addClass('gimlet-panel');
    this.title.icon = icon;
    this.title.caption = trans.__('Gimlet: devices, runs and plans');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', trans.__('Gimlet'));
    this.node.tabIndex = -1;
    this.status = html('p', { class: 'gimlet-said', role: 'status', 'aria-live': 'polite' });
    this.body = html('div');
    this.node.append(this.body, this.status);
    session.changed.connect(this.draw, this);
    // A button that is drawn anew between press and release hears no click.
    session.measured.connect(this.measured, this);
    this.draw();
  }

  /** Whoever opens the panel by a shortcut goes on there by Tab. */
  protected override onActivateRequest(message: Message): void {
    super.onActivateRequest(message);
    this.node.focus();
  }

  protected override onAfterShow(message: Message): void {
    super.onAfterShow(message);
    this.session.watch(true);
  }

  protected override onAfterHide(message: Message): void {
    super.onAfterHide(message);
    this.session.watch(false);
  }

  /** Runs a command in the kernel and says what came of it. */
  async command(line: string): Promise<void> {
    this.working = line;
    this.status.textContent = this.trans.__('%1 …', line);
    this.draw();
    const answer = await this.session.run(line);
    this.working = '';
    this.status.classList.toggle('gimlet-error', !answer.ok);
    // What is more than a paragraph belongs below a cell.
    this.status.textContent = answer.text.split('\n\n')[0] || this.trans.__('%1: done', line);
    this.draw();
  }

  private measured(): void {
    this.history.add(this.session.meters);
    this.measure();
  }

  private measure(): void {
    this.meters.replaceChildren(...this.devices());
    const running = this.session.running;
    this.live.replaceChildren(...(running ? [liveView(running)] : []));
  }

  private draw(): void {
    this.measure();
    const active = document.activeElement;
    if (active instanceof HTMLElement && this.body.contains(active)) {
      this.parked = active.dataset['action'] ?? null;
    } else if (active !== this.node) {
      this.parked = null;
    }
    this.body.replaceChildren(...(this.session.absence ? [this.absence()] : this.sections()));
    if (this.parked !== null) {
      this.refocus(this.parked);
    }
  }

  /** The keyboard stays where it was: on the control, else on the next of its section, meanwhile on the panel. */
  private refocus(action: string): void {
    let target = this.body.querySelector<HTMLElement>(`[data-action="${CSS.escape(action)}"]`);
    if (target?.matches(':disabled')) {
      const section = this.working ? null : target.closest('section');
      target = section?.querySelector<HTMLElement>('[data-action]:enabled') ?? null;
    }
    if (target) {
      this.parked = null;
    }
    (target ?? this.node).focus();
  }

  private absence(): HTMLElement {
    const trans = this.trans;
    const texts: Record<string, [string, string]> = {
      'no notebook': [
        trans.__('No notebook is open.'),
        trans.__('Open one to see its devices, runs and plans.')
      ],
      'no kernel': [trans.__('This notebook has no kernel.'), trans.__('Start one from the Kernel menu.')],
      dead: [
        trans.__('The kernel has died.'),
        trans.__('Restart it from the Kernel menu; saved runs still open.')
      ],
      'other language': [
        trans.__('This kernel speaks %1.', this.session.detail),
        trans.__('gimlet_lab profiles Python.')
      ],
      'not installed': [
        trans.__('gimlet_lab is not loaded in this kernel.'),
        trans.__('Run %load_ext gimlet_lab in a cell; pip install gimlet-lab first where it is missing.')
      ],
      versions: [
        trans.__('The kernel has gimlet-lab %1, this page another version.', this.session.detail),
        trans.__('Install the same version in both environments, restart the kernel and reload the page.')
      ]
    };
    const [what, todo] = texts[this.session.absence ?? 'no notebook'] ?? ['', ''];
    return html(
      'div',
      { class: 'gimlet-absent' },
      html('p', { class: 'gimlet-lead' }, what),
      html('p', { class: 'gimlet-quiet' }, todo)
    );
  }

  private sections(): HTMLElement[] {
    const trans = this.trans;
    return [
      this.section(
        trans.__('This cell'),
        this.button('profile', trans.__('Profile the active cell'), () => this.actions.profileCell(), true),
        this.live
      ),
      this.section(trans.__('Devices'), this.meters),
      this.section(trans.__('Runs'), ...this.runs()),
      this.section(trans.__('Plan'), ...this.plan()),
      ...this.settings()
    ];
  }

  private section(title: string, ...children: HTMLElement[]): HTMLElement {
    return html('section', {}, html('h2', {}, title), ...children);
  }

  private button(action: string, label: string, run: () => void, primary = false): HTMLButtonElement {
    const made = html(
      'button',
      {
        type: 'button',
        'data-action': action,
        class: primary ? 'gimlet-button gimlet-primary' : 'gimlet-button',
        disabled: this.working !== ''
      },
      label
    );
    made.addEventListener('click', run);
    return made;
  }

  private devices(): HTMLElement[] {
    const meters = this.session.meters;
    if (!meters.length) {
      return [html('p', { class: 'gimlet-quiet' }, this.trans.__('Reading meters…'))];
    }
    return [meterList(meters, this.history, this.trans)];
  }

  private runs(): HTMLElement[] {
    const runs = [...(this.session.state?.runs ?? [])].reverse();
    const rows = runs.slice(0, 30).map(run => {
      const open = this.button(`run ${run.name}`, run.name, () => this.actions.show(run.name, run.name));
      open.title = run.finding;
      return html(
        'li',
        {},
        open,
        html('span', { class: 'gimlet-quiet' }, `${seconds(run.duration_s)} · ${clip(run.finding, 90)}`)
      );
    });
    const held = runs.length
      ? html('ul', { class: 'gimlet-runs' }, ...rows)
      : html(
          'p',
          { class: 'gimlet-quiet' },
          this.trans.__('No run yet: put %%gimlet above a cell, or use the button above.')
        );
    return [held, ...this.saved()];
  }

  /** Runs in files, of other days and notebooks. */
  private saved(): HTMLElement[] {
    const saved = [...(this.session.state?.saved ?? [])].reverse();
    if (!saved.length) {
      return [];
    }
    const rows = saved.map(({ name, path }) => {
      const open = this.button(`saved ${path}`, name, () => this.actions.show(path, name));
      open.title = path;
      return html('li', {}, open);
    });
    return [this.folded('saved', this.trans.__('Saved'), html('ul', { class: 'gimlet-runs' }, ...rows))];
  }

  /** What is done with every profiled cell of this notebook. */
  private settings(): HTMLElement[] {
    const trans = this.trans;
    const words: Record<string, string> = {
      live: trans.__('Show below a cell what it is doing'),
      stacks: trans.__('Sample call stacks'),
      native: trans.__('Native frames in them too'),
      exact: trans.__('Look at every call (slower)'),
      save: trans.__('Keep every run in a file'),
      keep_text: trans.__("Keep the cell's text with its run"),
      quiet: trans.__('Show nothing below cells')
    };
    const settings = Object.entries(this.session.state?.settings ?? {});
    if (!settings.length) {
      return [];
    }
    const rows = settings.map(([name, on]) => {
      // What was asked for is seen until the kernel has answered.
      const other = `config ${name}=${on ? 'off' : 'on'}`;
      const box = html('input', {
        type: 'checkbox',
        checked: this.working === other ? !on : on,
        disabled: this.working !== '',
        'data-action': `config ${name}`
      });
      box.addEventListener('change', () => void this.command(other));
      return html('li', {}, html('label', {}, box, words[name] ?? name));
    });
    return [
      this.section(trans.__('Settings of this notebook'), html('ul', { class: 'gimlet-settings' }, ...rows))
    ];
  }

  private plan(): HTMLElement[] {
    const trans = this.trans;
    const state = this.session.state;
    const plan = state?.plans.at(-1);
    const placed = state?.deployment ?? null;
    const advise = this.button('advise', trans.__('Advise'), () => void this.command('advise'));
    advise.disabled = advise.disabled || !state?.runs.length;
    if (!plan) {
      return [html('p', { class: 'gimlet-quiet' }, trans.__('No plan yet: it is made from a run.')), advise];
    }
    const rows = Object.entries(plan.assignment).map(([stage, device]) =>
      html(
        'tr',
        {},
        html('th', { scope: 'row' }, clip(stage, 22)),
        html('td', {}, placed?.assignment[stage] ?? '–'),
        html('td', {}, device),
        html('td', {}, seconds(plan.seconds?.[stage] ?? null))
      )
    );
    const ways = (plan.ways ?? []).map(([name, latency]) =>
      html('tr', {}, html('th', { scope: 'row' }, clip(name, 22)), html('td', {}, seconds(latency)))
    );
    const apply = this.button('apply', trans.__('Apply'), () => void this.command('apply'), true);
    const back = this.button('rollback', trans.__('Roll back'), () => void this.command('rollback'));
    apply.disabled = apply.disabled || placed?.id === plan.id;
    back.disabled = back.disabled || placed === null;
    return [
      html('p', { class: 'gimlet-lead' }, plan.summary),
      html(
        'table',
        { class: 'gimlet-table' },
        html(
          'thead',
          {},
          html(
            'tr',
            {},
            ...[trans.__('Stage'), trans.__('Now'), trans.__('Plan'), trans.__('Predicted')].map(head =>
              html('th', { scope: 'col' }, head)
            )
          )
        ),
        html('tbody', {}, ...rows)
      ),
      html(
        'div',
        { class: 'gimlet-buttons' },
        advise,
        this.button('dry-run', trans.__('Dry run'), () => void this.command('apply --dry-run')),
        apply,
        back
      ),
      ...(ways.length
        ? [
            this.folded(
              'ways',
              trans.__('Other ways'),
              html('table', { class: 'gimlet-table' }, html('tbody', {}, ...ways))
            )
          ]
        : []),
      this.exporting(plan.id)
    ];
  }

  /** A part that is folded until somebody opens it, and then stays open. */
  private folded(action: string, title: string, content: HTMLElement): HTMLElement {
    const details = html(
      'details',
      { open: this.opened.has(action) },
      html('summary', { 'data-action': action }, title),
      content
    );
    details.addEventListener('toggle', () => {
      this.opened[details.open ? 'add' : 'delete'](action);
    });
    return details;
  }

  /** A form with the targets, and a field for the options of one that takes some. */
  private exporting(plan: string): HTMLElement {
    const trans = this.trans;
    const targets = this.session.state?.targets ?? [];
    const select = html(
      'select',
      { 'aria-label': trans.__('Export to'), 'data-action': 'export-target' },
      ...targets.map(one => html('option', { value: one.name, title: one.summary }, one.name))
    );
    const field = html('input', {
      type: 'text',
      'aria-label': trans.__('Options of the target'),
      'data-action': 'export-options'
    });
    const chosen = (): (typeof targets)[number] | undefined => targets.find(one => one.name === select.value);
    const show = (): void => {
      const names = Object.keys(chosen()?.options ?? {});
      field.hidden = names.length === 0;
      field.placeholder = names.map(name => `${name}=…`).join(' ');
      field.title = Object.entries(chosen()?.options ?? {})
        .map(([name, text]) => `${name}: ${text}`)
        .join('\n');
    };
    if (this.target && targets.some(one => one.name === this.target?.name)) {
      select.value = this.target.name;
      field.value = this.target.options;
    }
    const keep = (): void => {
      this.target = { name: select.value, options: field.value };
      show();
    };
    select.addEventListener('change', keep);
    field.addEventListener('input', keep);
    show();
    const write = (): void => {
      const file = `${plan}-${select.value}.${chosen()?.suffix ?? 'json'}`;
      const options = field.hidden ? [] : field.value.split(/\s+/).filter(Boolean);
      const words = options.map(option => `--option ${JSON.stringify(option)}`);
      void this.command(['export', select.value, file, ...words].join(' '));
    };
    return html(
      'div',
      { class: 'gimlet-buttons' },
      select,
      field,
      this.button('export', trans.__('Export'), write)
    );
  }
}
