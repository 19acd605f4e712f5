"""What the kaggle program prints is told in words that a user can act on."""

import pytest

from src.submit.failures import ALWAYS_A_FAILURE, FAILURES, FINAL, explain

AUTH_HELP = """Authentication required to call the Kaggle API.

First, you will need a Kaggle account. You can sign up at
  https://www.kaggle.com/account/login

Recommended: log in with OAuth via a web-based authorization flow.
No token to manage; credentials are cached locally for you.
    kaggle auth login
"""
NO_NETWORK = (
    "HTTPSConnectionPool(host='www.kaggle.com', port=443): Max retries exceeded with url: /v1/x (Caused by "
    "NameResolutionError(\"Failed to resolve 'www.kaggle.com'\"))\n"
)
RETRIED = (
    "Request failed: 503 Server Error: Service Unavailable for url: x. Will retry in  0.9 seconds\n"
    "Request failed: HTTPSConnectionPool: Max retries exceeded with url: x. Will retry in  1.4 seconds\n"
)
UPLOAD = """Starting upload for file src.zip
Warning: Looks like you're using an outdated `kaggle` version (installed: 2.2.4), please consider upgrading
\r  0%|          | 0.00/429k [00:00<?, ?B/s]\r100%|██████████| 429k/429k [00:00<00:00, 9.39MB/s]
Upload successful: src.zip (429KB)
Starting upload for file models.zip
\r  0%|          | 0.00/401M [00:00<?, ?B/s]\r100%|██████████| 401M/401M [00:09<00:00, 44.7MB/s]
Upload unsuccessful: models.zip
Starting upload for file infer.py
\r  0%|          | 0.00/4.01k [00:00<?, ?B/s]\r100%|██████████| 4.01k/4.01k [00:00<00:00, 424kB/s]
Upload successful: infer.py (4KB)
Your private Dataset is being created. Please check progress at https://www.kaggle.com/datasets/a/b
"""
"""All that the program prints, with exit status 0, where a server refuses one file."""


def kind_of(text: str, status: int = 1) -> str:
    failure = explain(text, status, "do it", "a-competition")
    assert "\n" not in str(failure)
    return failure.kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (AUTH_HELP, "no credentials"),
        (NO_NETWORK, "network"),
        ("401 Client Error: Unauthorized for url: x\n", "credentials"),
        ("Traceback (most recent call last):\nModuleNotFoundError: No module named 'six'\n", "not starting"),
        ("Kernel push error: Maximum batch GPU session count of 2 reached.\n", "sessions"),
        ("Kernel push error: Maximum weekly GPU quota of 30.00 hours reached.\n", "quota"),
        ("Kernel push error: You must verify your phone number first\n", "phone"),
        ("You must accept this competition's rules before you'll be able to submit\n", "rules"),
        ("Permission 'competitions.submissions.create' was denied\n", "rules"),
        ("Permission 'datasets.get' was denied\n", "refused"),
        ("Cannot access kernel 'a/b' (Permission 'kernels.get' was denied).\n", "refused"),
        ("403 Client Error: Forbidden for url: https://www.kaggle.com/api/v1/a/b\n", "refused"),
        ("404 Client Error: Not Found for url: x\n", "not found"),
        ("Internal error encountered.\n", "server"),
        ("The service is currently unavailable.\n", "server"),
        ("502 Server Error: Bad Gateway for url: x\n", "server"),
        ("Resource has been exhausted (e.g. check quota).\n", "busy"),
        ("429 Client Error: Too Many Requests for url: x\n", "busy"),
        ("409 Client Error: Conflict for url: x\n", "title"),
        ("You have reached the submission limit\n", "daily limit"),
        ("Surprise\n", "other"),
    ],
)
def test_each_kind_is_recognised(text, kind):
    assert kind_of(text) == kind


def test_a_file_that_did_not_arrive_is_named_though_the_program_speaks_of_success():
    failure = explain(UPLOAD, 0, "upload the dataset", "a-competition")
    assert failure.kind == "incomplete"
    assert str(failure) == (
        "could not upload the dataset: a file did not arrive (Upload unsuccessful: models.zip): the dataset "
        "lacks it, push again"
    )


def test_all_files_that_did_not_arrive_are_named():
    twice = UPLOAD.replace("Upload successful: infer.py (4KB)", "Upload unsuccessful: infer.py")
    told = str(explain(twice, 0, "upload", "a-competition"))
    assert "Upload unsuccessful: models.zip; Upload unsuccessful: infer.py" in told


def test_an_interrupted_program_ends_with_success_and_is_a_failure():
    assert kind_of("Starting upload for file infer.py\nUser cancelled operation\n", 0) == "cancelled"


def test_success_is_no_failure_whatever_else_is_printed():
    told = RETRIED + UPLOAD.replace("unsuccessful", "successful")
    assert explain(told, 0, "upload", "a-competition") is None


def test_the_line_that_tells_what_went_wrong_counts_before_all_others():
    warning = "Warning: Looks like you're using an outdated `kaggle` version, 404 of them are newer\n"
    quota = "Kernel push error: Maximum weekly GPU quota of 30.00 hours reached.\n"
    assert kind_of(warning + quota, 0) == "quota"
    failure = explain(warning + quota, 0, "push", "a-competition")
    assert "404" not in str(failure)


def test_other_lines_count_where_that_line_says_nothing_known():
    told = explain("Forbidden\nan error without a name\n", 1, "push", "a-competition")
    assert told.kind == "refused" and "(Forbidden)" in str(told)


def test_progress_and_faults_that_were_overcome_do_not_count():
    bar = "\r 40%|####      | 401/1003 [00:00<00:00, 409 Client]\n"
    assert kind_of(RETRIED + bar + "Surprise\n") == "other"


def test_a_phone_in_a_name_is_no_phone_number():
    assert kind_of("Dataset creation error: phone-photos: something new\n", 0) == "other"


def test_a_page_of_rules_is_that_of_the_competition():
    told = explain("You must accept the competition rules\n", 1, "submit", "a-competition")
    assert "https://www.kaggle.com/competitions/a-competition/rules" in str(told)


def test_the_kinds_that_are_final_exist():
    assert {failure.kind for failure in FAILURES} | {"missing"} >= FINAL


@pytest.mark.parametrize("text", ["Dataset is created", "successfully pushed", "Upload successful: x"])
def test_what_the_program_says_of_success_is_no_failure(text):
    assert not ALWAYS_A_FAILURE.search(text)
