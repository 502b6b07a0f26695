/** Charts for docs/performance.md: an SVG file for each, drawn without a browser. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as echarts from 'echarts';
import { root } from '../test/peers/available.ts';

export interface BarChart {
  title: string;
  /** Of the value axis. */
  unit: string;
  /** What stands below each group of bars. */
  groups: string[];
  /** A colour each; a value for each group, undefined where there is none. */
  series: { name: string; values: (number | undefined)[] }[];
  /** A logarithmic value axis. */
  log?: boolean;
}

const COLOURS = ['#2f7d4f', '#7a869a', '#c58b2a', '#8a5aa8'];

/** Writes docs/benchmarks/NAME.svg and returns the Markdown that shows it; `says` is its text for those who can't see it. */
export function writeChart(name: string, says: string, chart: BarChart): string {
  const folder = join(root, 'docs/benchmarks');
  mkdirSync(folder, { recursive: true });
  const drawn = echarts.init(null, null, { renderer: 'svg', ssr: true, width: 760, height: 340 });
  drawn.setOption({
    animation: false,
    backgroundColor: '#ffffff',
    color: COLOURS,
    title: { text: chart.title, left: 'center', textStyle: { fontSize: 14 } },
    legend: { bottom: 0 },
    grid: { left: 60, right: 20, top: 50, bottom: 60 },
    xAxis: { type: 'category', data: chart.groups },
    yAxis: { type: chart.log ? 'log' : 'value', name: chart.unit },
    series: chart.series.map(({ name: title, values }) => ({
      type: 'bar',
      name: title,
      data: values.map((value) => (value === undefined ? '-' : Number(value.toFixed(3)))),
    })),
  });
  writeFileSync(join(folder, `${name}.svg`), `${drawn.renderToSVGString()}\n`);
  drawn.dispose();
  return `![${says}](benchmarks/${name}.svg)`;
}
