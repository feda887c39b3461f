import { strToU8, zipSync } from 'fflate';
import { expect, it } from 'vitest';
import { displayForm } from '../src/archive';

const base64 = (bytes: Uint8Array): string => btoa(String.fromCharCode(...bytes));

it('a saved run gives its display form', () => {
  const file = zipSync({
    'run.json': strToU8('{}'),
    'display.json': strToU8('{"schema":"gimlet.display/1"}')
  });
  expect(displayForm(base64(file))).toEqual({ schema: 'gimlet.display/1' });
});

it('a file cut short, of another kind or without the form gives nothing', () => {
  const file = zipSync({ 'display.json': strToU8('{"schema":"gimlet.display/1"}') });
  expect(displayForm(base64(file.slice(0, 30)))).toBeNull();
  expect(displayForm(base64(strToU8('not a zip')))).toBeNull();
  expect(displayForm(base64(zipSync({ 'other.json': strToU8('{}') })))).toBeNull();
  expect(displayForm(base64(zipSync({ 'display.json': strToU8('{"torn') })))).toBeNull();
  expect(displayForm('no base64 !!')).toBeNull();
});
