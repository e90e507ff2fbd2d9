/** The trained model with its experts in other types, made from the Q8_0 file by the tool that lies beside it. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { temporaryFolder } from './folder.js';
import { missingShared, shared } from './golden.js';

/** The path of the file, or why it cannot be made here. */
export function requantized(type: string): { readonly path: string } | { readonly reason: string } {
  const reason = missingShared('model/tldr-Q8_0.gguf') ?? missingShared('tools/requantize.py');
  if (reason !== undefined) return { reason };
  const path = join(temporaryFolder(), `tldr-${type}.gguf`);
  const run = spawnSync(
    'python3',
    [shared('tools/requantize.py'), shared('model/tldr-Q8_0.gguf'), type, path],
    {
      encoding: 'utf8',
    },
  );
  if (run.status === 0) return { path };
  return {
    reason: `requantize.py does not run here: ${(run.stderr ?? String(run.error)).trim().split('\n').at(-1)}`,
  };
}
