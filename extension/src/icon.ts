import { LabIcon } from '@jupyterlab/ui-components';

/** A roofline with a point below it. */
export const icon = new LabIcon({
  name: 'gimlet-lab:icon',
  svgstr:
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><path class="jp-icon3" fill="none" stroke="#616161" stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round" d="M2 12.5 7.5 5H14"/><circle class="jp-icon3" fill="#616161" cx="10" cy="10.5" r="2.2"/></svg>'
});
