/** A saved run: a zip, of which the page needs one member. */

import { strFromU8, unzipSync } from 'fflate';

const MEMBER = 'display.json';

/** The display form inside a `.gimlet` file; a line on what is wrong with it otherwise. */
export function displayForm(base64: string): unknown {
  try {
    const letters = atob(base64);
    // Uint8Array.from() takes seconds where the file has tens of megabytes.
    const bytes = new Uint8Array(letters.length);
    for (let at = 0; at < letters.length; at++) {
      bytes[at] = letters.charCodeAt(at);
    }
    const member = unzipSync(bytes, { filter: file => file.name === MEMBER })[MEMBER];
    return member ? JSON.parse(strFromU8(member)) : null;
  } catch {
    return null;
  }
}
