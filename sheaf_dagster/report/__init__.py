"""A page about one file that a job answered: one HTML file that needs nothing besides itself."""

from sheaf_dagster.report.figures import require_bokeh
from sheaf_dagster.report.page import CheckLine, Page, render_page

__all__ = ["CheckLine", "Page", "render_page", "require_bokeh"]
