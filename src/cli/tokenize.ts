/** `moestream tokenize`: what a text becomes; needs only a vocabulary, not the weights. */
import type { Command } from 'commander';
import { openModelText } from '../model/model.ts';
import { readText } from './arguments.ts';
import { print, table } from './output.ts';

interface TokenizeFlags {
  readonly model: string;
  readonly ids?: boolean;
  readonly parseSpecial: boolean;
}

export function addTokenize(program: Command): void {
  program
    .command('tokenize')
    .description('show the tokens of a text')
    .argument('[text]', 'the text; without one, standard input')
    .requiredOption(
      '-m, --model <file>',
      'GGUF file or checkpoint folder; a vocabulary without weights will do',
    )
    .option('--ids', 'only the ids, separated by commas')
    .option('--no-parse-special', 'take the text of special tokens, such as <|im_end|>, as plain text')
    .action(tokenize);
}

async function tokenize(argument: string | undefined, flags: TokenizeFlags): Promise<void> {
  const { tokenizer } = openModelText(flags.model);
  const ids = tokenizer.encode(argument ?? readText('-'), { parseSpecial: flags.parseSpecial });
  if (flags.ids === true) return print(`${ids.join(',')}\n`);
  const decoder = new TextDecoder();
  await print(table(ids.map((id) => [id, JSON.stringify(decoder.decode(tokenizer.tokenBytes(id)))])));
}
