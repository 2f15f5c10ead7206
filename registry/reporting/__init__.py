"""The report: a registry as one HTML page that needs no network, no server and no script.

``collecting`` asks the catalog, ``heatmap``, ``bars`` and ``scatter`` compute where everything goes, ``page`` fills the
templates. None of it needs torch.
"""
