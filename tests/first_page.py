"""TensorBoard's page Custom Scalars, read from the event files of a run as the page reads them."""

import re

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2

SIDE_BY_SIDE = {
    "success": ["charts/success_rate"],
    "V(s_0) and success": ["critic/v0_mean", "charts/success_rate"],
    "KL to the policy that acted": ["losses/approx_kl"],
    "clip fraction": ["losses/clipfrac"],
}
"""Title of a chart -> the curves in it."""


def layouts(folder):
    """All layouts that were written, each as {category: {title of a chart: patterns of tags}}."""
    found = []
    for file in sorted(folder.glob("events*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag == "custom_scalars__config__":
                    assert value.metadata.plugin_data.plugin_name == "custom_scalars"
                    layout = layout_pb2.Layout.FromString(value.tensor.string_val[0])
                    found.append({c.title: {x.title: list(x.multiline.tag) for x in c.chart} for c in layout.category})
    return found


def charts(folder, tags):
    """Title of a chart -> which of the logged tags it shows. There is one layout with one row of charts."""
    ((row,),) = [list(layout.values()) for layout in layouts(folder)]
    return {
        title: [tag for pattern in patterns for tag in tags if re.match(pattern, tag)]
        for title, patterns in row.items()
    }
