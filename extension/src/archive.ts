/** A saved run: a zip, of which the page needs one member. */

import { strFromU8, unzipSync } from 'fflate';

const MEMBER = 'display.json';

/** The display form inside a `.gimlet` file; a line on what is wrong with it otherwise. */
export function displayForm(base64: string): unknown {
  try {
    const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
    const member = unzipSync(bytes, { filter: file => file.name === MEMBER })[MEMBER];
    return member ? JSON.parse(strFromU8(member)) : null;
  } catch {
    return null;
  }
}
