"""Colours: for pages as CSS variables that follow the notebook's theme, for pictures as values."""

from __future__ import annotations

#: Colours of bounds: told apart by the colour-blind (after Okabe and Ito, 2008), 3:1 on white and on #111.
BOUNDS = {
    "bandwidth": "#3b82c4",
    "compute": "#d55e00",
    "overhead": "#b8860b",
    "wait": "#c05f9a",
    "transfer": "#009e73",
    "idle": "#888888",
}

#: The light theme, for pictures.
LIGHT = {
    **BOUNDS,
    "ink": "#1f2328",
    "quiet": "#59636e",
    "grid": "#dfe3e8",
    "surface": "#ffffff",
    "tint": "#f3f5f8",
    "roof": "#59636e",
    "white": "#ffffff",
}

_VARIABLES = {
    # JupyterLab's own, then VS Code's, then the page's.
    "ink": "var(--jp-ui-font-color1,var(--vscode-editor-foreground,CanvasText))",
    "surface": "var(--jp-layout-color0,var(--vscode-editor-background,Canvas))",
    "grid": "var(--jp-border-color2,rgba(128,128,128,.32))",
    "tint": "var(--jp-layout-color2,rgba(128,128,128,.12))",
    "quiet": "var(--jp-ui-font-color1,var(--vscode-editor-foreground,CanvasText))",
    "roof": "var(--jp-ui-font-color1,var(--vscode-editor-foreground,CanvasText))",
    "white": "#fff",
    **BOUNDS,
}


def css() -> str:
    """The style of everything we show in a page; all of it below the class ``gimlet``."""
    variables = "".join(f"--g-{name}:{value};" for name, value in _VARIABLES.items())
    paint = "".join(
        f".gimlet .f-{name}{{fill:var(--g-{name})}}.gimlet .s-{name}{{stroke:var(--g-{name})}}"
        for name in _VARIABLES
    )
    return f".gimlet{{{variables}{_ROOT}}}{paint}{_REST}"


def _still() -> str:
    paint = "".join(f".f-{name}{{fill:{value}}}.s-{name}{{stroke:{value}}}" for name, value in LIGHT.items())
    return (
        f"<style>svg{{background:{LIGHT['surface']};font-family:system-ui,sans-serif}}{paint}"
        f".f-none{{fill:none}}.halo{{paint-order:stroke;stroke:{LIGHT['surface']};stroke-width:3px;"
        "stroke-linejoin:round}text{unicode-bidi:isolate}</style>"
    )


#: The style inside a drawing that is an image: no page's style reaches into it.
STILL = _still()

_ROOT = (
    "color:var(--g-ink);"
    "font:13px/1.45 var(--jp-ui-font-family,var(--vscode-font-family,system-ui,sans-serif));"
    "max-width:980px;margin:2px 0 8px;overflow-wrap:anywhere"
)
# Twice the class where JupyterLab styles tables with as much weight.
_REST = (
    # A page that is not trusted drops this style: then the image shows, and what is hidden stays so.
    ".gimlet.gimlet .live{display:block}.gimlet.gimlet .still{display:none}"
    ".gimlet svg{display:block;max-width:100%;height:auto;font-family:inherit}"
    ".gimlet .f-quiet{fill-opacity:.72}.gimlet .s-roof{stroke-opacity:.72}.gimlet .f-none{fill:none}"
    ".gimlet .halo{paint-order:stroke;stroke:var(--g-surface);stroke-width:3px;stroke-linejoin:round}"
    ".gimlet svg text{unicode-bidi:isolate}"
    ".gimlet .lead{font-size:15px;font-weight:600;line-height:1.35;margin:0 0 2px}"
    ".gimlet .meta,.gimlet .note{opacity:.78;margin:0 0 6px;font-size:12px}"
    ".gimlet ul{margin:4px 0 8px;padding-inline-start:18px}.gimlet li{margin:1px 0}"
    ".gimlet .row{display:flex;flex-wrap:wrap;gap:4px 20px;align-items:flex-start}"
    ".gimlet .row>figure{flex:1 1 400px;min-width:0}"
    ".gimlet figure{margin:10px 0 4px}"
    ".gimlet figcaption,.gimlet h3{font-size:13px;font-weight:600;margin:0 0 4px}"
    ".gimlet ul.legend{display:flex;flex-wrap:wrap;gap:2px 16px;margin:4px 0 2px;padding:0;list-style:none;"
    "font-size:12px}.gimlet ul.legend svg{display:inline-block;vertical-align:-1px;margin-inline-end:5px}"
    ".gimlet .scroll{overflow-x:auto}.gimlet .scroll svg{max-width:none}"
    ".gimlet table{border-collapse:collapse;font-size:12px;margin:2px 0 6px;"
    "font-variant-numeric:tabular-nums;border:0;table-layout:auto}"
    ".gimlet.gimlet table th,.gimlet.gimlet table td{text-align:start;padding:2px 14px 2px 0;"
    "border:0;background:none;color:inherit;vertical-align:top;max-width:none;white-space:nowrap}"
    ".gimlet.gimlet table td.wrap{white-space:normal}"
    ".gimlet.gimlet table thead th{font-weight:600;border-bottom:1px solid var(--g-grid)}"
    ".gimlet.gimlet table tbody tr:nth-child(n){background:none}"
    ".gimlet.gimlet table tbody td,.gimlet.gimlet table tbody th{border-bottom:1px solid var(--g-grid)}"
    ".gimlet.gimlet table tbody th{font-weight:500}.gimlet.gimlet table .n{text-align:end}"
    ".gimlet details{margin:6px 0}.gimlet summary{cursor:pointer;font-weight:600}"
    ".gimlet summary:focus-visible{outline:2px solid var(--jp-brand-color1,Highlight);outline-offset:2px}"
    + "".join(f".gimlet .c-{name}{{color:var(--g-{name})}}" for name in BOUNDS)
    + "@media (forced-colors:active){.gimlet{--g-ink:CanvasText;--g-quiet:CanvasText;--g-roof:CanvasText;"
    "--g-surface:Canvas;--g-grid:GrayText}}"
)
