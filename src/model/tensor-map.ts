import { MoestreamError } from '../errors.ts';
import type { GgmlType } from './ggml-types.ts';
import type { Gguf, GgufTensor } from './gguf.ts';
import type { Hyperparameters } from './hyperparameters.ts';

export interface DenseTensor {
  readonly name: string; readonly layer: number; readonly type: GgmlType; readonly cols: number; readonly rows: number;
  readonly file: number; readonly offsetBytes: number; readonly byteLength: number;
}
export interface ExpertMatrix {
  readonly file: number; readonly offsetBytes: number; readonly strideBytes: number; readonly byteLength: number;
  readonly type: GgmlType; readonly rows: number; readonly cols: number;
}
export interface ExpertTensors { readonly gate: ExpertMatrix; readonly up: ExpertMatrix; readonly down: ExpertMatrix }
export interface TensorMap { readonly dense: readonly DenseTensor[]; readonly experts: readonly ExpertTensors[]; readonly ignored: readonly string[] }

export function mapTensors(gguf: Gguf, hp: Hyperparameters): TensorMap {
  const dense: DenseTensor[] = []; const ignored: string[] = [];
  const exps = new Map<string, GgufTensor>();
  for (const t of gguf.tensors.values()) {
    const m = /^blk\.(\d+)\.(.*)$/.exec(t.name);
    const layer = m ? Number(m[1]) : -1; const name = m ? m[2]! : t.name;
    if (layer >= hp.layers || (layer < 0 && !['token_embd.weight', 'output.weight', 'output_norm.weight'].includes(name))) { ignored.push(t.name); continue; }
    if (name.includes('_exps.')) { exps.set(t.name, t); continue; }
    const [cols, ...rest] = t.shape as [number, ...number[]];
    dense.push({ name, layer, type: t.type, cols, rows: rest.reduce((a, b) => a * b, 1), file: t.file, offsetBytes: t.offsetBytes, byteLength: t.byteLength });
  }
  const matrix = (l: number, n: string): ExpertMatrix => {
    const t = exps.get(`blk.${l}.ffn_${n}_exps.weight`);
    if (!t) throw new MoestreamError('MODEL_INVALID', `blk.${l}.ffn_${n}_exps.weight is missing`);
    const bytes = t.byteLength / t.shape[2]!;
    return { file: t.file, offsetBytes: t.offsetBytes, strideBytes: bytes, byteLength: bytes, type: t.type, rows: t.shape[1]!, cols: t.shape[0]! };
  };
  const experts = Array.from({ length: hp.layers }, (_, l) => ({ gate: matrix(l, 'gate'), up: matrix(l, 'up'), down: matrix(l, 'down') }));
  return { dense, experts, ignored };
}
