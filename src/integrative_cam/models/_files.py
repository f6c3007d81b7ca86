"""Whether there is such a file or folder; not Path's methods, which fail for names that none can have."""

from __future__ import annotations

import os.path

is_file, is_folder = os.path.isfile, os.path.isdir
