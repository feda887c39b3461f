/** Elements without innerHTML: a string from a run is text, whatever it holds. */

type Child = Node | string | null | undefined | false;
type Attributes = Record<string, string | number | boolean | null | undefined>;

function fill<E extends Element>(element: E, attributes: Attributes, children: Child[]): E {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? '' : String(value));
    }
  }
  element.append(...children.filter((child): child is Node | string => Boolean(child)));
  return element;
}

export function html<K extends keyof HTMLElementTagNameMap>(
  name: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  return fill(document.createElement(name), attributes, children);
}

export function svg<K extends keyof SVGElementTagNameMap>(
  name: K,
  attributes: Attributes = {},
  ...children: Child[]
): SVGElementTagNameMap[K] {
  return fill(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);
}

/** The points of lines through places; where there is none the line is broken. */
export function polylines(places: ([number, number] | null)[]): string[] {
  const found: string[][] = [[]];
  for (const place of places) {
    if (place?.every(Number.isFinite)) {
      found[found.length - 1]?.push(place.map(part => part.toFixed(1)).join(','));
    } else {
      found.push([]);
    }
  }
  return found.filter(points => points.length > 1).map(points => points.join(' '));
}

/** A table of texts; the first column names the row. */
export function table(caption: string, heads: string[], rows: string[][], hidden = false): HTMLTableElement {
  return html(
    'table',
    { class: hidden ? 'gimlet-hidden' : 'gimlet-table' },
    html('caption', {}, caption),
    html('thead', {}, html('tr', {}, ...heads.map(head => html('th', { scope: 'col' }, head)))),
    html(
      'tbody',
      {},
      ...rows.map(row =>
        html(
          'tr',
          {},
          ...row.map((cell, index) => (index ? html('td', {}, cell) : html('th', { scope: 'row' }, cell)))
        )
      )
    )
  );
}
