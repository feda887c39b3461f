/** What the page and one kernel say to each other: a comm, no port and no route of ours. */

import type { Kernel, KernelMessage } from '@jupyterlab/services';
import type { JSONObject } from '@lumino/coreutils';
import type { ISessionContext } from '@jupyterlab/apputils';
import { Signal } from '@lumino/signaling';
import type { Running } from './live';
import type { Meter } from './meters';

export const TARGET = 'gimlet_lab';

/** The version of what is said; the kernel's package names its own. */
export const PROTOCOL = 1;

export interface State {
  protocol: number;
  version: string;
  runs: { name: string; started: string; duration_s: number | null; finding: string }[];
  /** In the user's data folder, of this and other notebooks. */
  saved?: { name: string; path: string }[];
  plans: {
    id: string;
    name: string;
    summary: string;
    assignment: Record<string, string>;
    /** Predicted, of all calls of a stage. */
    seconds?: Record<string, number>;
    /** Other ways to place it, and their latency; null where it is none. */
    ways?: [string, number | null][];
  }[];
  /** What a plan can be exported as. */
  targets?: { name: string; summary: string; options: Record<string, string>; suffix: string }[];
  /** Of this notebook, by the names of `%gimlet config`. */
  settings?: Record<string, boolean>;
  deployment: { id: string; assignment: Record<string, string> } | null;
}

export interface Answer {
  ok: boolean;
  text: string;
  form?: unknown;
}

/** Why there is nothing to show. */
export type Absence = 'no notebook' | 'no kernel' | 'other language' | 'not installed' | 'versions' | 'dead';

export class Session {
  readonly changed = new Signal<this, void>(this);
  /** Meters have come: twice a second, and nothing else has changed. */
  readonly measured = new Signal<this, void>(this);
  state: State | null = null;
  meters: Meter[] = [];
  running: Running | null = null;
  absence: Absence | null = 'no notebook';
  detail = '';
  private comm: Kernel.IComm | null = null;
  private context: ISessionContext | null = null;
  private generation = 0;
  private watching = false;
  private next = 1;
  private readonly waiting = new Map<number, (answer: Answer) => void>();

  /** Follow another notebook; null for none. */
  follow(context: ISessionContext | null): void {
    if (this.context === context) {
      return;
    }
    this.context?.kernelChanged.disconnect(this.onKernel, this);
    this.context?.statusChanged.disconnect(this.onStatus, this);
    this.context = context;
    context?.kernelChanged.connect(this.onKernel, this);
    context?.statusChanged.connect(this.onStatus, this);
    void this.connect();
  }

  /** Meters are read while somebody looks. */
  watch(visible: boolean): void {
    this.watching = visible;
    this.say({ watch: visible });
    if (visible && !this.comm) {
      void this.connect();
    }
  }

  /** A cell has run: where gimlet_lab was not loaded before, it may be now. */
  ran(): void {
    // Not whenever the kernel is idle: it is so after each refusal too.
    if (this.watching && this.absence === 'not installed') {
      void this.connect();
    }
  }

  /** One line after `%gimlet`. */
  run(line: string): Promise<Answer> {
    return this.ask({ line });
  }

  /** What the charts of a run show. */
  form(run: string): Promise<Answer> {
    return this.ask({ run });
  }

  /** Have the next cell profiled. */
  arm(): Promise<Answer> {
    return this.ask({ arm: true });
  }

  private async ask(question: JSONObject): Promise<Answer> {
    if (!(await this.ready())) {
      return { ok: false, text: 'No kernel is connected.' };
    }
    const id = this.next++;
    return new Promise(resolve => {
      this.waiting.set(id, resolve);
      this.say({ id, ...question });
    });
  }

  /** Whether the kernel answers. One that nobody watches may have loaded gimlet_lab meanwhile: it is asked. */
  private async ready(): Promise<boolean> {
    if (!this.comm) {
      await this.connect();
    }
    if (this.comm && !this.state && !this.absence) {
      await new Promise<void>(resolve => {
        const heard = (): void => {
          this.changed.disconnect(heard);
          resolve();
        };
        this.changed.connect(heard);
      });
    }
    return this.comm !== null && this.absence === null;
  }

  dispose(): void {
    this.follow(null);
    Signal.clearData(this);
  }

  /** Connects to the kernel of the notebook that is followed. */
  async connect(): Promise<void> {
    const generation = ++this.generation;
    this.comm?.dispose();
    this.comm = null;
    this.absence = null;
    this.state = null;
    this.meters = [];
    this.running = null;
    this.waiting.forEach(resolve => resolve({ ok: false, text: 'The kernel went away.' }));
    this.waiting.clear();
    const kernel = this.context?.session?.kernel;
    if (!kernel) {
      return this.absent(this.context ? 'no kernel' : 'no notebook');
    }
    const info = await kernel.info.catch(() => null);
    if (generation !== this.generation) {
      return;
    }
    if (!info || kernel.status === 'dead') {
      return this.absent('dead');
    }
    if (info.language_info.name !== 'python') {
      return this.absent('other language', info.language_info.name);
    }
    const comm = kernel.createComm(TARGET);
    if ('commsOverSubshells' in comm) {
      // A command that changes where models are must not run beside a cell that uses them. (And the subshell
      // that JupyterLab shares among comms of one target goes away with the first of them.)
      (comm as { commsOverSubshells: string }).commsOverSubshells = 'disabled';
    }
    comm.onMsg = message => this.heard(message);
    comm.onClose = () => {
      if (this.comm === comm) {
        this.comm = null;
        this.absent('not installed');
      }
    };
    this.comm = comm;
    comm.open({ protocol: PROTOCOL });
    this.say({ watch: this.watching });
  }

  private heard(message: KernelMessage.ICommMsgMsg): void {
    const data = message.content.data as JSONObject;
    if ('state' in data) {
      const state = data['state'] as unknown as State;
      if (state.protocol !== PROTOCOL) {
        return this.absent('versions', state.version);
      }
      this.state = state;
      this.absence = null;
    }
    if (Array.isArray(data['meters'])) {
      this.meters = data['meters'] as unknown as Meter[];
      this.running = (data['running'] as unknown as Running | undefined) ?? null;
      return this.measured.emit();
    }
    if (typeof data['id'] === 'number') {
      const resolve = this.waiting.get(data['id']);
      this.waiting.delete(data['id']);
      resolve?.({ ok: data['ok'] === true, text: String(data['text'] ?? ''), form: data['form'] });
    }
    this.changed.emit();
  }

  private say(data: JSONObject): void {
    if (this.comm && !this.comm.isDisposed) {
      this.comm.send(data);
    }
  }

  private absent(reason: Absence, detail = ''): void {
    this.absence = reason;
    this.detail = detail;
    this.changed.emit();
  }

  private onKernel(): void {
    void this.connect();
  }

  private onStatus(_: ISessionContext, status: Kernel.Status): void {
    if (status === 'dead') {
      this.absent('dead');
    } else if (status === 'restarting' || status === 'autorestarting') {
      this.comm = null;
      this.absent('no kernel');
    } else if (status === 'idle' && !this.comm && this.absence === 'no kernel' && this.watching) {
      void this.connect();
    }
  }
}
