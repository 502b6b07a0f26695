/** Keys of fields: camelCase in objects (`maxAddresses`), kebab-case in lines and options (`max-addresses`). */
export const camel = (key: string) =>
  key.replace(/-([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
export const kebab = (key: string) => key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
