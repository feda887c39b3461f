/** Outputs of a notebook that hold a run: drawn without a kernel, and without trust, for nothing in them runs. */

import type { IRenderMime } from '@jupyterlab/rendermime-interfaces';
import type { JSONValue } from '@lumino/coreutils';
import { Widget } from '@lumino/widgets';
import { MIME } from './model';
import { runView } from './view';

class RunOutput extends Widget implements IRenderMime.IRenderer {
  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    this.addClass('gimlet-output');
    this.node.replaceChildren(runView(model.data[MIME] as JSONValue));
  }
}

const extension: IRenderMime.IExtension = {
  id: 'gimlet-lab:mime',
  description: 'Draws runs of gimlet_lab.',
  rendererFactory: { safe: true, mimeTypes: [MIME], createRenderer: () => new RunOutput() },
  rank: 0,
  dataType: 'json'
};

export default extension;
