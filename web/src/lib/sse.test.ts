import { describe, expect, it } from 'vitest';
import { SseParser } from './sse';

const STREAM =
  ': hello\n\nid: 7\nevent: step.disk\ndata: {"seq":7}\n\nevent: session\ndata: one\ndata: two\n\n:\n\n';

const EXPECTED = [
  { id: '7', event: 'step.disk', data: '{"seq":7}' },
  { id: null, event: 'session', data: 'one\ntwo' },
];

describe('a stream of events', () => {
  it('is split into messages and comments are dropped', () => {
    expect(new SseParser().push(STREAM)).toEqual(EXPECTED);
  });

  it('is the same wherever its chunks are cut, with any line ends', () => {
    for (const text of [STREAM, STREAM.replaceAll('\n', '\r\n')]) {
      for (let cut = 0; cut <= text.length; cut++) {
        const parser = new SseParser();
        const got = [...parser.push(text.slice(0, cut)), ...parser.push(text.slice(cut))];
        expect(got).toEqual(EXPECTED);
      }
    }
  });

  it('keeps a message back until it is complete', () => {
    const parser = new SseParser();
    expect(parser.push('data: half')).toEqual([]);
    expect(parser.push('\n')).toEqual([]);
    expect(parser.push('\n')).toEqual([{ id: null, event: 'message', data: 'half' }]);
  });
});
