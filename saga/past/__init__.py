"""What the reactions of this working tree would have decided, where others have decided already.

`recorded` reads the kept events subject by subject, and `part` has one participant's share in them.
`shared` has the states that several subjects share as they were at each moment. `steps` takes each
recorded step again, with `guesses` where nothing was recorded, `comparing` holds it against the
record, and `again` says what differs; `findings` counts that. `over` goes over all subjects, in
several processes if asked to. `onward` explores on from where recorded sagas are now, and `against`
does all of that for one archive.

`production` tells which transitions the newest events show.
"""
