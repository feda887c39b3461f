/** The display form of a run, as the kernel computed it: plain data, times in seconds, unknown is null. */

export type Maybe = number | null;

export interface Stage {
  id: string;
  role: string | null;
  device: string | null;
  calls: number;
  call_s: Maybe;
  total_s: Maybe;
  share: Maybe;
  bound: string | null;
  flops_per_s: Maybe;
  bytes_per_s: Maybe;
  joules?: Maybe;
}

/** What one meter said meanwhile; runs of older versions have none. */
export interface Strip {
  device: string;
  reading: string;
  unit: string;
  most: number;
  time_s: number[];
  value: Maybe[];
}

export interface Timeline {
  end_s: number;
  strips?: Strip[];
  lanes: string[];
  bounds: string[];
  marks: Record<'lane' | 'start_s' | 'duration_s' | 'bound' | 'warmup' | 'merged', number[]>;
}

export interface Point {
  stage: string;
  bound: string;
  intensity: Maybe;
  flops_per_s: Maybe;
  share: Maybe;
  of_roof: Maybe;
  interval_flops_per_s: [Maybe, Maybe] | null;
}

export interface Roof {
  kind: string;
  tier: string;
  dtype: string | null;
  value: number;
  source: string;
}

export interface Roofline {
  points: Point[];
  roofs: Roof[];
  x_decades: [number, number];
  y_decades: [number, number];
}

export interface Carried {
  tensor: string;
  bytes: Maybe;
  known: string;
}

export interface Graph {
  layers: number;
  nodes: { stage: number; layer: number; slot: number }[];
  edges: { from: number; to: number; back: boolean; carries: Carried[] }[];
}

export interface Operator {
  stage: string;
  op: string;
  dtype: string;
  calls: number;
  total_s: Maybe;
  flops: Maybe;
  bytes: Maybe;
}

export interface Form {
  schema: string;
  view?: string;
  name: string;
  status: string;
  started: string;
  duration_s: Maybe;
  overhead_s: Maybe;
  device: { name: string; short: string };
  finding: string;
  summary: string[];
  notes: string[];
  stages: Stage[];
  phases: { by_bound: { bound: string; seconds: Maybe; share: Maybe }[] };
  timeline: Timeline;
  roofline: Roofline;
  graph: Graph;
  operators: Operator[];
}

/** The schema that this page draws; another version of the kernel's package may write another one. */
export const SCHEMA = 'gimlet.display/1';

export const MIME = 'application/vnd.gimlet.run.v1+json';

/** Reads a display form; what it is not, in one line, where it is none. */
export function readForm(data: unknown): Form | string {
  if (typeof data !== 'object' || data === null) {
    return 'This output holds no run.';
  }
  const form = data as Partial<Form>;
  if (typeof form.schema !== 'string' || !form.schema.startsWith('gimlet.display/')) {
    return 'This output holds no run of gimlet_lab.';
  }
  if (form.schema !== SCHEMA) {
    return `This run is of ${form.schema}, and this page draws ${SCHEMA}: install the same version of gimlet-lab for the kernel and for JupyterLab.`;
  }
  const marks = form.timeline?.marks;
  const columns = marks && [
    marks.lane,
    marks.start_s,
    marks.duration_s,
    marks.bound,
    marks.warmup,
    marks.merged
  ];
  const whole =
    columns?.every(column => Array.isArray(column) && column.length === columns[0]?.length) &&
    [form.stages, form.timeline?.lanes, form.timeline?.bounds].every(Array.isArray) &&
    [form.roofline?.points, form.roofline?.roofs, form.graph?.nodes, form.graph?.edges].every(
      Array.isArray
    ) &&
    [form.operators, form.notes, form.summary, form.phases?.by_bound].every(Array.isArray) &&
    typeof form.finding === 'string';
  return whole ? (form as Form) : 'This run is damaged: parts of its display form are missing.';
}
