/** What is selected in one chart is selected in all of them: a stage by its name. */

export class Selection {
  private chosen: string | null = null;
  private readonly listeners: ((stage: string | null) => void)[] = [];

  get stage(): string | null {
    return this.chosen;
  }

  listen(listener: (stage: string | null) => void): void {
    this.listeners.push(listener);
  }

  /** Selects a stage, or none where it was selected already. */
  toggle(stage: string): void {
    this.chosen = this.chosen === stage ? null : stage;
    this.listeners.forEach(listener => listener(this.chosen));
  }
}

/** Makes a mark a button for its stage, by mouse and by keyboard. */
export function selectable(mark: Element, stage: string, label: string, selection: Selection): void {
  mark.setAttribute('tabindex', '0');
  mark.setAttribute('role', 'button');
  mark.setAttribute('aria-label', label);
  mark.setAttribute('aria-pressed', 'false');
  mark.classList.add('gimlet-mark');
  mark.addEventListener('click', () => selection.toggle(stage));
  mark.addEventListener('keydown', event => {
    const key = (event as KeyboardEvent).key;
    if (key === 'Enter' || key === ' ') {
      event.preventDefault();
      selection.toggle(stage);
    }
  });
  selection.listen(chosen => {
    mark.classList.toggle('gimlet-dim', chosen !== null && chosen !== stage);
    mark.setAttribute('aria-pressed', String(chosen === stage));
  });
}
