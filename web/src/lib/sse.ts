/**
 * Server-Sent Events over fetch. EventSource hides the status of an answer and sends no
 * Last-Event-ID of ours, and both are needed to resume and to explain.
 */

export interface SseMessage {
  id: string | null;
  event: string;
  data: string;
}

/** Splits a stream into messages, wherever its chunks are cut. */
export class SseParser {
  #rest = '';
  #event = '';
  #data: string[] = [];
  #id: string | null = null;

  push(chunk: string): SseMessage[] {
    const messages: SseMessage[] = [];
    const text = this.#rest + chunk;
    const lines = text.split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop() ?? '';
    for (const line of lines) {
      if (line === '') {
        if (this.#data.length > 0) {
          const data = this.#data.join('\n');
          messages.push({ id: this.#id, event: this.#event || 'message', data });
        }
        this.#event = '';
        this.#data = [];
        this.#id = null;
      } else if (!line.startsWith(':')) {
        this.#field(line);
      }
    }
    return messages;
  }

  #field(line: string): void {
    const colon = line.indexOf(':');
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? '' : line.slice(colon + 1);
    if (value.startsWith(' ')) value = value.slice(1);
    if (name === 'event') this.#event = value;
    else if (name === 'data') this.#data.push(value);
    else if (name === 'id') this.#id = value;
  }
}

/** The server sends a comment every 10 s; a stream that is silent for longer than this is dead. */
export const SILENCE_MS = 25_000;

export interface Streaming {
  onOpen(): void;
  onMessage(message: SseMessage): void;
  /** Once, unless it was closed from here. `code` as of a WebSocket: 44xx as the HTTP status. */
  onClose(code: number, reason: string): void;
}

/** Opens a stream; the function returned closes it. */
export function openStream(url: string, lastEventId: string | null, to: Streaming): () => void {
  const abort = new AbortController();
  let closed = false;
  let silence: ReturnType<typeof setTimeout> | undefined;
  const end = (code: number, reason: string) => {
    if (closed) return;
    closed = true;
    clearTimeout(silence);
    abort.abort();
    to.onClose(code, reason);
  };
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => end(4408, 'nothing was heard'), SILENCE_MS);
  };
  const read = async () => {
    const headers: Record<string, string> = { accept: 'text/event-stream' };
    if (lastEventId !== null) headers['last-event-id'] = lastEventId;
    const response = await fetch(url, {
      headers,
      signal: abort.signal,
      cache: 'no-store',
      credentials: 'same-origin',
    });
    if (!response.ok || response.body === null) {
      return end(response.status < 600 ? 4000 + response.status : 1006, response.statusText);
    }
    if (closed) return;
    to.onOpen();
    const parser = new SseParser();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (closed) return;
      if (done) return end(1006, 'the stream ended');
      heard();
      for (const message of parser.push(value)) to.onMessage(message);
    }
  };
  heard();
  read().catch((error: unknown) => end(1006, error instanceof Error ? error.message : ''));
  return () => {
    closed = true;
    clearTimeout(silence);
    abort.abort();
  };
}
