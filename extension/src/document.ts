/** A double click on a saved run: the same view in a tab, without a kernel. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import { ABCWidgetFactory, type DocumentRegistry, DocumentWidget } from '@jupyterlab/docregistry';
import type { ITranslator } from '@jupyterlab/translation';
import { Widget } from '@lumino/widgets';
import { displayForm } from './archive';
import { icon } from './icon';
import { empty, runView } from './view';

const TYPE = 'gimlet-run';

class RunFactory extends ABCWidgetFactory<DocumentWidget<Widget>> {
  protected createNewWidget(context: DocumentRegistry.Context): DocumentWidget<Widget> {
    const content = new Widget();
    content.addClass('gimlet-document');
    content.title.icon = icon;
    const draw = (): void => {
      const form = displayForm(context.model.toString());
      content.node.replaceChildren(
        form === null ? empty('This file is no run of gimlet_lab, or a part of one.') : runView(form)
      );
    };
    void context.ready.then(draw);
    context.model.contentChanged.connect(draw);
    return new DocumentWidget({ content, context });
  }
}

export function registerDocuments(app: JupyterFrontEnd, translator: ITranslator): void {
  const trans = translator.load('gimlet_lab');
  app.docRegistry.addFileType({
    name: TYPE,
    displayName: trans.__('gimlet run'),
    extensions: ['.gimlet'],
    fileFormat: 'base64',
    contentType: 'file',
    icon
  });
  app.docRegistry.addWidgetFactory(
    new RunFactory({
      name: 'gimlet',
      label: trans.__('Run'),
      modelName: 'base64',
      fileTypes: [TYPE],
      defaultFor: [TYPE],
      readOnly: true
    })
  );
}
