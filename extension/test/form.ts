import type { Form } from '../src/model';

/** A run of two stages, with what a test wants otherwise. */
export function form(changes: Partial<Form> = {}): Form {
  const stage = {
    role: null,
    device: 'cpu',
    calls: 2,
    call_s: 0.1,
    total_s: 0.2,
    share: 0.5,
    bound: 'compute',
    flops_per_s: 1e9,
    bytes_per_s: 1e8,
    joules: null
  };
  return {
    schema: 'gimlet.display/1',
    name: 'agent',
    status: 'ok',
    started: '2026-11-26T12:00:00.123+00:00',
    duration_s: 0.4,
    overhead_s: 0.01,
    device: { name: 'CPU', short: 'this CPU' },
    finding: 'agent took 400 ms',
    summary: [],
    notes: [],
    stages: [
      { ...stage, id: 'embed' },
      { ...stage, id: 'search', bound: 'wait' }
    ],
    phases: { by_bound: [{ bound: 'compute', seconds: 0.2, share: 0.5 }] },
    timeline: {
      end_s: 0.4,
      lanes: ['embed', 'search'],
      bounds: ['compute', 'bandwidth', 'overhead', 'transfer', 'wait', 'idle'],
      marks: {
        lane: [0, 1],
        start_s: [0, 0.2],
        duration_s: [0.2, 0.2],
        bound: [0, 4],
        warmup: [1, 0],
        merged: [1, 1]
      }
    },
    roofline: {
      points: [
        {
          stage: 'embed',
          bound: 'compute',
          intensity: 10,
          flops_per_s: 1e9,
          share: 0.5,
          of_roof: 0.4,
          interval_flops_per_s: [5e8, 2e9]
        }
      ],
      roofs: [
        { kind: 'bandwidth', tier: 'calibrated', dtype: null, value: 1e10, source: 'measured here' },
        { kind: 'compute', tier: 'calibrated', dtype: 'float32', value: 1e11, source: 'measured here' }
      ],
      x_decades: [-2, 3],
      y_decades: [6, 12]
    },
    graph: {
      layers: 2,
      nodes: [
        { stage: 0, layer: 0, slot: 0 },
        { stage: 1, layer: 1, slot: 0 }
      ],
      edges: [{ from: 0, to: 1, back: false, carries: [{ tensor: 'query', bytes: 1536, known: 'tensor' }] }]
    },
    operators: [
      { stage: 'embed', op: 'aten::mm', dtype: 'float32', calls: 4, total_s: 0.1, flops: 1e9, bytes: 1e6 }
    ],
    ...changes
  };
}
