"""Searches on the workers of Ray, and codes as its tasks."""

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from skpudle import PUDLEDictionaryLearning

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

X = load_digits().data[:200]


@pytest.fixture(scope="module", autouse=True)
def workers():
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_search_on_workers_is_the_search():
    from ray.util.joblib import register_ray

    register_ray()
    learner = PUDLEDictionaryLearning(4, random_state=0)
    search = GridSearchCV(learner, {"alpha": [5.0, 10.0]}, cv=2, error_score="raise")
    with joblib.parallel_config(backend="ray", n_jobs=-1):
        far = search.fit(X).cv_results_["mean_test_score"]
    near = search.fit(X).cv_results_["mean_test_score"]
    np.testing.assert_allclose(far, near, rtol=1e-10)
