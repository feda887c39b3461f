/** The panel, its commands, and saved runs as documents. */

import {
  ILabShell,
  ILayoutRestorer,
  type JupyterFrontEnd,
  type JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { ICommandPalette, MainAreaWidget } from '@jupyterlab/apputils';
import { INotebookTracker, NotebookActions } from '@jupyterlab/notebook';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import { Widget } from '@lumino/widgets';
import { registerDocuments } from './document';
import { icon } from './icon';
import { Panel } from './panel';
import { Session } from './session';
import { empty, runView } from './view';

const COMMANDS = { profile: 'gimlet:profile-cell', panel: 'gimlet:show-panel' };

const plugin: JupyterFrontEndPlugin<void> = {
  id: 'gimlet-lab:panel',
  description: 'Devices, runs and plans of gimlet_lab.',
  autoStart: true,
  requires: [INotebookTracker],
  optional: [ILabShell, ILayoutRestorer, ICommandPalette, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    notebooks: INotebookTracker,
    shell: ILabShell | null,
    restorer: ILayoutRestorer | null,
    palette: ICommandPalette | null,
    translator: ITranslator | null
  ): void => {
    const trans = (translator ?? nullTranslator).load('gimlet_lab');
    const session = new Session();
    registerDocuments(app, translator ?? nullTranslator);

    const show = async (run: string, title: string): Promise<void> => {
      const answer = await session.form(run);
      const content = new Widget();
      content.addClass('gimlet-document');
      content.node.append(answer.ok ? runView(answer.form) : empty(answer.text));
      const tab = new MainAreaWidget({ content });
      tab.title.label = title;
      tab.title.icon = icon;
      app.shell.add(tab, 'main', { mode: 'split-right' });
      app.shell.activateById(tab.id);
    };
    const panel = new Panel(
      session,
      {
        profileCell: () => void app.commands.execute(COMMANDS.profile),
        show: (run, title) => void show(run, title)
      },
      trans
    );
    app.shell.add(panel, 'right', { rank: 900 });
    restorer?.add(panel, panel.id);
    const follow = (): void => session.follow(notebooks.currentWidget?.sessionContext ?? null);
    notebooks.currentChanged.connect(follow);
    NotebookActions.executed.connect((_, { notebook }) => {
      if (notebook === notebooks.currentWidget?.content) {
        session.ran();
      }
    });
    void app.restored.then(() => {
      follow();
      session.watch(panel.isVisible);
    });

    app.commands.addCommand(COMMANDS.profile, {
      // The toolbar has room for the icon (its place is in the schema, where settings may move it).
      label: args => (args['toolbar'] ? '' : trans.__('Profile the active cell')),
      caption: trans.__('Run the active cell under gimlet_lab'),
      icon,
      isEnabled: () => notebooks.activeCell?.model.type === 'code',
      execute: async () => {
        const notebook = notebooks.currentWidget;
        if (!notebook) {
          return;
        }
        // The kernel is told that the next cell is meant: the page never touches the text.
        if ((await session.arm()).ok) {
          await NotebookActions.run(notebook.content, notebook.sessionContext);
        } else {
          // It says there what is missing.
          await app.commands.execute(COMMANDS.panel);
        }
      }
    });
    app.commands.addCommand(COMMANDS.panel, {
      label: trans.__('Show the Gimlet panel'),
      icon,
      execute: () => (shell ?? app.shell).activateById(panel.id)
    });
    for (const command of Object.values(COMMANDS)) {
      palette?.addItem({ command, category: 'Gimlet' });
    }
  }
};

export default plugin;
