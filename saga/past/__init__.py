"""What the reactions of this working tree would have decided, where others have decided already.

`recorded` reads the kept events subject by subject, `shared` has the states that several subjects
share as they were at each moment, `again` decides on each recorded message once more, `findings`
counts what came of it. `onward` explores on from where recorded sagas are now, and `against` does
all of that for one archive.
"""
