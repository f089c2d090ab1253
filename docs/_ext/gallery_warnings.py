"""An example of the gallery that warns fails the build."""

import contextlib
import warnings

FILTERS = contextlib.ExitStack()  # the filters of the example that runs


def refuse_warnings(gallery_conf, name, when):
    """Turn warnings of an example into errors; sphinx-gallery calls this before and after it."""
    FILTERS.close()
    if when == "before" and name is not None:  # it has no name at the start of a folder
        FILTERS.enter_context(warnings.catch_warnings())
        warnings.simplefilter("error")
        # `matplotlib.pyplot.show` warns wherever pictures go to files
        warnings.filterwarnings(
            "ignore", message=".*non-interactive", category=UserWarning
        )
