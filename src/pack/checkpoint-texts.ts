/** The texts beside a checkpoint's tensors: configuration, tokenizer, chat template. They are copied as they are. */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import type { Checkpoint } from '../model/checkpoint.ts';
import { TEXT_NAMES } from '../model/checkpoint-config.ts';

export interface TextFile {
  readonly name: string;
  readonly path: string;
  readonly sizeBytes: number;
}

/** The texts that a checkpoint has. */
export function textsOf(checkpoint: Checkpoint): TextFile[] {
  return TEXT_NAMES.flatMap((name) => {
    const path = join(checkpoint.folder, name);
    const found = statSync(path, { throwIfNoEntry: false });
    return found === undefined ? [] : [{ name, path, sizeBytes: found.size }];
  });
}
