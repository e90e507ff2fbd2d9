/**
 * Lists of values as llama-bench takes them: `1,2,4`, `1-8`, `1-8+2`, `1-8*2`, and names such as `lru,lfru`. What an
 * element means is the flag's own business; ranges are of whole numbers.
 */
import { MoestreamError } from '../errors.ts';

const RANGE = /^(\d+)-(\d+)(?:([+*])(\d+))?$/;
const LIST_MAX = 256;

/** Every element of a list, as text and without repetition. Throws USAGE. */
export function expandList(text: string): string[] {
  const elements = text.split(',').map((element) => element.trim());
  if (elements.includes('')) throw new MoestreamError('USAGE', `"${text}" has an empty element`);
  const values = [...new Set(elements.flatMap((element) => rangeOf(element) ?? [element]))];
  if (values.length <= LIST_MAX) return values;
  throw new MoestreamError('USAGE', `"${text}" is ${values.length} values, at most ${LIST_MAX} are taken`);
}

function rangeOf(element: string): string[] | undefined {
  const match = RANGE.exec(element);
  if (match === null) return undefined;
  const [first, last, step] = [Number(match[1]), Number(match[2]), Number(match[4] ?? 1)];
  const times = match[3] === '*';
  if (first > last || (times ? step < 2 || first === 0 : step < 1)) {
    throw new MoestreamError('USAGE', `"${element}" is a range that does not get from ${first} to ${last}`, {
      hint: 'Write FIRST-LAST, FIRST-LAST+STEP or FIRST-LAST*FACTOR.',
    });
  }
  const values: string[] = [];
  for (
    let value = first;
    value <= last && values.length <= LIST_MAX;
    value = times ? value * step : value + step
  )
    values.push(String(value));
  return values;
}
