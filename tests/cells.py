"""Cells as a user writes them below the first line: each runs below a comment and below ``%%gimlet``."""

from __future__ import annotations

_TEXT = r'''
=== last expression
x = 20
x + 1
=== semicolon
x = 20
x + 1;
=== print
print('one')
print('two')
=== stderr
import sys
print('out')
print('err', file=sys.stderr)
=== display
from IPython.display import display, HTML
display(HTML('<b>bold</b>'))
display({'a': 1})
=== top-level await
import asyncio
await asyncio.sleep(0.001)
'slept'
=== gather
import asyncio
async def one(n):
    await asyncio.sleep(0.001)
    return n
await asyncio.gather(one(1), one(2))
=== async with and for
import contextlib
@contextlib.asynccontextmanager
async def there():
    yield 5
async def count():
    for i in range(3):
        yield i
async with there() as five:
    found = [i async for i in count()]
five, found
=== shell
!echo from the shell
=== shell assigned
lines = !echo one; echo two
list(lines)
=== multi-line string
text = """one
  %%time
    # two
"""
text
=== f-string and backslash
n = 3
f'{n:>4}' \
  + 'x'
=== nested run_cell
before = 1
result = get_ipython().run_cell('inner = 41\ninner + 1')
(before, result.result)
=== nested failing run_cell
get_ipython().run_cell('1/0').success
=== generator
def squares(n):
    for i in range(n):
        yield i * i
list(squares(4))
=== class
class Point:
    'A point.'
    def __init__(self, x):
        self.x = x
    def __repr__(self):
        return f'P({self.x})'
Point(3)
=== inspect
import inspect
def plain(a, b=2):
    return a + b
inspect.getsource(plain), str(inspect.signature(plain)), plain(1)
=== error
a = 1
b = 0

a / b
=== error in a function of an earlier cell
value = 2

fails_at_line_three(value)
=== chained error
try:
    {}['key']
except KeyError as error:
    raise ValueError('second') from error
=== time
%time sum(range(1000))
=== error in a class body
class Broken:
    x = 1
    y = undefined_name
=== syntax error
x = 1
y = = 2
=== indentation error
x = 1
   y = 2
=== async error
import asyncio
async def broken():
    await asyncio.sleep(0)
    raise RuntimeError('in a task')
await broken()
=== recursion error
import sys
def down(n):
    return down(n + 1)
try:
    down(0)
except RecursionError as error:
    print(type(error).__name__)
=== memory error
def exhaust():
    raise MemoryError('no more')
exhaust()
=== warning
import warnings
warnings.warn('careful')
=== assert
assert 1 == 2, 'not equal'
=== sys.exit
import sys
print('leaving')
sys.exit(3)
=== fork
import os
child = os.fork()
if child == 0:
    os._exit(7)
os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
=== threads
import threading
got = []
threads = [threading.Thread(target=got.append, args=(i,)) for i in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
sorted(got)
=== thread left over
import threading
stop = threading.Event()
t = threading.Thread(target=stop.wait)
t.start()
t.is_alive()
=== thread ended
stop.set(); t.join(); t.is_alive()
=== executor
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(2) as pool:
    found = list(pool.map(len, ['a', 'bb']))
found
=== subprocess
import subprocess, sys
subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True, text=True).stdout
=== help
len?
=== empty

=== only comments
# nothing

# here
=== magic
%who_ls nothing
=== unknown magic
x = 1
%nosuchmagic
=== lambda and comprehension
f = lambda n: [i for i in range(n) if i % 2]
f(6)
=== exec and eval
exec('z = 5')
eval('z + 1')
=== global state
import sys, threading
(len(threading.enumerate()) > 0, sys.gettrace() is None)
=== walrus and match
match [1, 2]:
    case [a, b] if (c := a + b) > 2:
        print(c)
c
=== torch
import torch
torch.nn.Linear(3, 4)(torch.zeros(2, 3)).shape
=== torch module
class Doubled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 3)
    def forward(self, x):
        return self.inner(x).sum() * 0 + x.sum()
doubled = Doubled()
[doubled(torch.ones(2, 3)).item() for _ in range(3)]
=== error in an operator
torch.zeros(2, 3) @ torch.zeros(2, 3)
=== error in a torch module
doubled(torch.zeros(2, 4))
=== exception group
raise ExceptionGroup('several', [ValueError('one'), TypeError('two')])
'''

#: By name.
CELLS = {
    name: cell.removesuffix("\n")
    for name, _, cell in (part.partition("\n") for part in _TEXT.split("=== ")[1:])
}
