import tseslint from 'typescript-eslint';

export default tseslint.config(...tseslint.configs.strict, {
  ignores: ['lib', 'labextension', 'node_modules']
});
