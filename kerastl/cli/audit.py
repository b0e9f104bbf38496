"""`audit SOURCE`: say what is wrong with the data; with --out also as a page with thumbnails and as tables."""

from pathlib import Path

from kerastl.cli import chosen, train
from kerastl.cli.quiet import import_quietly
from kerastl.files import check_output_folder


def run(arguments) -> int:
    """Audit, print, write, and return the exit status."""
    train.check_images(arguments)
    import_quietly("tensorflow", verbose=arguments.verbose)  # load_images would import it, start-up lines and all
    from kerastl.data.folders import load_images
    from kerastl.evaluation.audit import AUDIT_FILES, audit

    if arguments.out:
        check_output_folder(arguments.out, overwrite=arguments.overwrite, files=AUDIT_FILES, what="audit")
    options = chosen(arguments, ("image_size", "labels", "validation", "test", "seed", "resize"))
    splits = load_images(arguments.source, skip_unreadable=True, **options)
    weights = train.weights_of(arguments)
    result = audit(splits, backbone=arguments.backbone, weights=weights, seed=arguments.seed)
    print(f"\n{result}")
    if arguments.out:
        result.write(arguments.out, overwrite=arguments.overwrite)
        print(f"\nAudit: {Path(arguments.out) / 'audit.html'} shows the images; findings.csv lists everything")
    return 0
