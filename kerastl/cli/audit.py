"""`audit SOURCE`: say what is wrong with the data; with --out also as a page with thumbnails and as tables."""

from pathlib import Path

from kerastl.checks import check_count
from kerastl.cli.quiet import import_quietly
from kerastl.data.images import check_image_size
from kerastl.files import check_output_folder
from kerastl.models import backbones


def run(arguments) -> int:
    """Audit, print, write, and return the exit status."""
    row = backbones.backbone_row(arguments.backbone)
    size = check_image_size(row.native_size if arguments.image_size is None else arguments.image_size)
    backbones.check_input_shape(row, (*size, 3))
    check_count("--seed", arguments.seed, smallest=0, largest=2**32 - 1)
    import_quietly("tensorflow", verbose=arguments.verbose)  # load_images would import it, start-up lines and all
    from kerastl.data.folders import load_images
    from kerastl.evaluation.audit import AUDIT_FILES, audit

    if arguments.out:
        check_output_folder(arguments.out, overwrite=arguments.overwrite, files=AUDIT_FILES, what="audit")
    names = ("labels", "validation", "test", "seed", "resize")
    chosen = {name: getattr(arguments, name) for name in names}
    splits = load_images(arguments.source, image_size=size, skip_unreadable=True, **chosen)
    weights = None if arguments.weights.lower() == "none" else arguments.weights
    result = audit(splits, backbone=arguments.backbone, weights=weights, seed=arguments.seed)
    print(f"\n{result}")
    if arguments.out:
        result.write(arguments.out, overwrite=arguments.overwrite)
        print(f"\nAudit: {Path(arguments.out) / 'audit.html'} shows the images; findings.csv lists everything")
    return 0
