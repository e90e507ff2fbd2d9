/** What the measuring commands share: the text they measure with, and the look at the machine before. */

import { MoestreamError } from '../errors.ts';
import { busySentence, lookAtMachine, type MachineLook } from '../eval/machine.ts';
import type { TokenSource } from '../eval/token-source.ts';
import { openModel } from '../model/model.ts';
import { readText, tokenIds } from './arguments.ts';

export interface SourceFlags {
  readonly file?: string;
  readonly ids?: string;
}

/** The text or ids that were given; undefined when none were. */
export function sourceOf({ file, ids }: SourceFlags): TokenSource | undefined {
  if (file !== undefined && ids !== undefined) {
    throw new MoestreamError('USAGE', 'give either a text with -f or token ids with --ids, not both');
  }
  if (ids !== undefined) return { ids: tokenIds(readText(ids)) };
  return file === undefined ? undefined : { text: readText(file) };
}

/** Looks at the machine, and says so when it is busy. */
export async function lookFirst(
  models: readonly string[],
  buffered: boolean,
  notice: (sentence: string) => void,
): Promise<MachineLook> {
  const paths = buffered ? models.flatMap((model) => openModel(model).files.map((file) => file.path)) : [];
  const look = await lookAtMachine(paths, { buffered });
  const sentence = busySentence(look);
  if (sentence !== undefined) notice(sentence);
  return look;
}
