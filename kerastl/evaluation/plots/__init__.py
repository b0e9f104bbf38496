"""Pictures: curves, confusion matrix, labels, mistakes, reliability, probes, gradients, feature maps, filters, Grad-CAM ….

`plot_history`, `plot_confusion_matrix`, `plot_label_scores`, `plot_numbers`, `plot_mistakes`, `plot_images`,
`plot_reliability`, `plot_probe`, `plot_comparison` and `plot_learning_rates` return a `matplotlib.figure.Figure`, the
others the axes that they drew on (`axes.figure` is the figure).
What is returned belongs to no global state: show it as the last line of a notebook cell, or write it with
`figure.savefig("curves.png")`. Nothing here calls `plt.show` or touches pyplot.
"""

from kerastl.evaluation.plots.comparison import plot_comparison
from kerastl.evaluation.plots.confusion import plot_confusion_matrix, plot_images, plot_mistakes
from kerastl.evaluation.plots.drawing import empty_figure
from kerastl.evaluation.plots.heat import plot_grad_cam
from kerastl.evaluation.plots.history import plot_history
from kerastl.evaluation.plots.maps import plot_feature_maps, plot_filters
from kerastl.evaluation.plots.norms import plot_gradient_norms
from kerastl.evaluation.plots.probe import plot_probe
from kerastl.evaluation.plots.rates import plot_learning_rates
from kerastl.evaluation.plots.reliability import plot_reliability
from kerastl.evaluation.plots.scores import plot_label_scores, plot_numbers

__all__ = [
    "empty_figure",
    "plot_comparison",
    "plot_confusion_matrix",
    "plot_feature_maps",
    "plot_filters",
    "plot_grad_cam",
    "plot_gradient_norms",
    "plot_history",
    "plot_images",
    "plot_label_scores",
    "plot_learning_rates",
    "plot_mistakes",
    "plot_numbers",
    "plot_probe",
    "plot_reliability",
]
