"""How the table looks, in light and dark, live and saved.

Colours come from the page around: JupyterLab's variables, else VS Code's, else a tone that reads
on white and on black. Words keep the colour of the text; only signs and bars are coloured, so
that contrast never depends on a theme. A notebook that is not trusted loses this style sheet:
the table must then still be readable, which is why bars are native ``<progress>`` elements.
"""

from __future__ import annotations

from regards_nb.display.board import Tone

#: Colour of each tone, as inline style too: that survives in notebooks that are not trusted.
COLOUR = {
    Tone.WAITS: "var(--jp-warn-color0,var(--vscode-charts-orange,#c77700))",
    Tone.FAILED: "var(--jp-error-color1,var(--vscode-charts-red,#d9363e))",
    Tone.PARTLY: "var(--jp-warn-color1,var(--vscode-charts-yellow,#c77700))",
    Tone.RUNNING: "var(--jp-brand-color1,var(--vscode-charts-blue,#1976d2))",
    Tone.DONE: "var(--jp-success-color1,var(--vscode-charts-green,#2e8b45))",
    Tone.GONE: "var(--jp-ui-font-color2,var(--vscode-descriptionForeground,#777777))",
}

#: How far the table grows before it scrolls.
MAX_HEIGHT = "440px"

_TONES = "\n".join(
    f".regards-nb .rg-{tone}{{--rg-tone:{colour}}}" for tone, colour in COLOUR.items()
)

# JupyterLab right-aligns, stripes and shrinks the tables of static output but not those of
# widgets: the !important rules make both look alike.
CSS = f"""<style>
.regards-nb{{--rg-fg:var(--jp-content-font-color1,var(--vscode-editor-foreground,currentColor));
--rg-muted:var(--jp-content-font-color2,var(--vscode-descriptionForeground,currentColor));
--rg-line:var(--jp-border-color2,var(--vscode-panel-border,rgba(128,128,128,.35)));
--rg-back:var(--jp-layout-color0,var(--vscode-editor-background,Canvas));
--rg-track:var(--jp-layout-color3,rgba(128,128,128,.28));
color:var(--rg-fg);font-family:var(--jp-ui-font-family,system-ui,sans-serif);
font-size:var(--jp-ui-font-size1,13px);line-height:1.45}}
{_TONES}
.regards-nb .rg-head{{display:flex;flex-wrap:wrap;align-items:baseline;
gap:2px 14px;padding:4px 0 2px}}
.regards-nb .rg-headline{{font-weight:600;font-size:1.08em}}
.regards-nb .rg-health{{color:var(--rg-muted);padding:0 0 4px}}
.regards-nb .rg-sign{{color:var(--rg-tone);display:inline-block;min-width:.8em;font-style:normal}}
.regards-nb .rg-note{{color:var(--rg-muted);padding:0 0 4px}}
.regards-nb .rg-more,.regards-nb .rg-problem,.regards-nb .rg-said{{padding:3px 0}}
.regards-nb .rg-more,.regards-nb .rg-id,.regards-nb .rg-files{{color:var(--rg-muted)}}
.regards-nb.regards-nb table{{table-layout:auto!important;border-collapse:collapse!important;
width:100%!important;margin:0!important;border:none!important;font-size:inherit!important;
color:inherit!important}}
.regards-nb.regards-nb tr{{background:none!important}}
.regards-nb.regards-nb th,.regards-nb.regards-nb td,.jp-RenderedHTMLCommon .regards-nb tr>*{{
text-align:left!important;vertical-align:middle!important;padding:5px 14px 5px 0!important;
max-width:none!important;border:none!important;border-bottom:1px solid var(--rg-line)!important;
white-space:nowrap!important;line-height:1.35!important;font-weight:400}}
.regards-nb.regards-nb thead th{{position:sticky;top:0;z-index:1;
background:var(--rg-back)!important;color:var(--rg-muted);font-size:.88em;font-weight:600}}
.regards-nb.regards-nb tbody tr:last-child>*{{border-bottom:none!important}}
.regards-nb .rg-name{{font-weight:600;white-space:normal;min-width:9em;max-width:22em;
overflow-wrap:anywhere}}
.regards-nb .rg-id,.regards-nb .rg-files{{font-size:.88em}}
.regards-nb .rg-parts{{font-variant-numeric:tabular-nums}}
.regards-nb progress+.rg-parts{{padding-left:4px}}
.regards-nb progress{{appearance:none;-webkit-appearance:none;width:110px;height:8px;border:none;
border-radius:4px;overflow:hidden;vertical-align:middle;background:var(--rg-track);
accent-color:var(--rg-tone);color:var(--rg-tone)}}
.regards-nb progress.rg-bytes-bar{{width:60px;height:5px}}
.regards-nb progress::-webkit-progress-bar{{background:var(--rg-track)}}
.regards-nb progress::-webkit-progress-value{{background:var(--rg-tone);border-radius:4px}}
.regards-nb progress::-moz-progress-bar{{background:var(--rg-tone);border-radius:4px}}
.regards-nb.regards-nb td.rg-remarks{{width:45%;white-space:normal!important;min-width:14em;
overflow-wrap:anywhere;padding-right:0!important}}
.regards-nb .rg-act{{font-weight:600}}
</style>"""
