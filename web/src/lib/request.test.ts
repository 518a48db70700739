import { describe, expect, it } from 'vitest';
import { formField, initialValues, requestFrom, withScheme } from './request';

const HERE = { locale: 'de-DE', timezone: 'Europe/Berlin' };
const WINDOW = { width: 1333, height: 777 };

describe('a new session', () => {
  it('has the language and time zone of its user and leaves the rest to the server', () => {
    expect(requestFrom(initialValues(HERE), WINDOW)).toEqual({
      provider: 'desktop',
      screen: { width: 1280, height: 800 },
      locale: 'de-DE',
      timezone: 'Europe/Berlin',
    });
  });

  it('can be asked for like one before', () => {
    const like = {
      provider: 'codex',
      name: 'Again',
      screen: { width: 1000, height: 700 },
      startUrl: 'https://example.org/',
      locale: 'fr-FR',
      timezone: 'Etc/UTC',
      memoryMib: 4096,
      vcpus: 3,
    };
    expect(requestFrom(initialValues(HERE, like), WINDOW)).toEqual(like);
  });

  it('can be as large as the window, in even numbers', () => {
    const values = { ...initialValues(HERE), screen: 'window' };
    expect(requestFrom(values, WINDOW).screen).toEqual({ width: 1332, height: 776 });
    expect(requestFrom(values, { width: 10, height: 10 }).screen).toEqual({
      width: 320,
      height: 240,
    });
  });

  it('names a key for credentials only where there will be any', () => {
    const values = { ...initialValues(HERE), recipient: ' age1xyz ' };
    expect(requestFrom(values, WINDOW, true).recipient).toBe('age1xyz');
    expect(requestFrom(values, WINDOW)).not.toHaveProperty('recipient');
  });

  it('takes addresses as people write them', () => {
    expect(withScheme('example.org')).toBe('https://example.org');
    expect(withScheme('localhost:3000/x')).toBe('https://localhost:3000/x');
    expect(withScheme('http://example.org')).toBe('http://example.org');
    expect(withScheme('about:blank')).toBe('about:blank');
  });

  it('shows an error at the field that it belongs to', () => {
    expect(formField('screen.width')).toBe('screen');
    expect(formField('screen')).toBe('screen');
    expect(formField('memoryMib')).toBe('memoryMib');
    expect(formField(undefined)).toBeUndefined();
  });
});
