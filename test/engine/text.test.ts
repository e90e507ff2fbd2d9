/** Streamed text: whole characters only, whatever bytes the tokens bring. */
import { describe, expect, it } from 'vitest';
import { withEngine } from '../support/engine.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

describe('streamed text', () => {
  it('is the decoding of all token bytes, and no piece ends in the middle of a character', async () => {
    await withEngine({ model: BUILT_IN_MODEL }, async (engine) => {
      const { tokenizer } = engine.model;
      let partial = 0;
      // Nearly uniform over the vocabulary: whole and broken characters of all lengths.
      for (const seed of [1, 2, 3]) {
        const generation = engine.generate(
          { raw: '漢字 é 🙂' },
          { seed, temperature: 50, topK: 0, topP: 1, minP: 0, maxTokens: 300 },
        );
        const bytes: number[] = [];
        let text = '';
        for await (const piece of generation) {
          if (piece.token !== undefined && !tokenizer.isControl(piece.token))
            bytes.push(...tokenizer.tokenBytes(piece.token));
          text += piece.text;
          // What has come so far is what whole characters the bytes so far hold, and nothing of the next.
          const soFar = new TextDecoder().decode(Uint8Array.from(bytes), { stream: true });
          if (piece.token !== undefined) expect(text).toBe(soFar);
          if (new TextDecoder().decode(Uint8Array.from(bytes)) !== soFar) partial++;
        }
        expect(text).toBe(new TextDecoder().decode(Uint8Array.from(bytes)));
      }
      expect(partial).toBeGreaterThan(3);
    });
  });
});
