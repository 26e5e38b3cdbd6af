"""Who the customers are and where they live, per split. No name or street appears in two splits."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """Names, streets and a mail host of one split."""

    first: tuple[str, ...]
    last: tuple[str, ...]
    streets: tuple[str, ...]
    host: str


PEOPLE = {
    "train": People(
        first=tuple(
            "Ann Ben Carl Dora Emma Fred Gina Hugo Ida Jack Kate Leo Mary Nick Olga Paul Rosa Sam "
            "Tina Walt Alan Beth Clara Dan Ella Finn Grace Hank Iris John Karen Luke Mona Ned Otto "
            "Peter Ruth Simon Tom Vera".split()
        ),
        last=tuple(
            "Adams Baker Clark Davis Evans Foster Green Harris Irwin Jones King Lewis Miller Nelson "
            "Owens Parker Quinn Reed Smith Turner Vance Walker Young Allen Brown Cooper Dixon Ellis "
            "Fisher Grant".split()
        ),
        streets=tuple(
            "Oak Street|Main Street|Park Road|Lake Road|Hill Street|Mill Lane|Church Street|"
            "River Road|Garden Street|King Street|School Lane|Station Road|Forest Road|"
            "Market Street|Bridge Street|Sun Street".split("|")
        ),
        host="mail.com",
    ),
    "validation": People(
        first=tuple(
            "Amy Bruno Cora Dean Eva Frank Gail Harry Ivy Jim Kim Lars Mia Noah Opal Phil Rita "
            "Sean Tara Will".split()
        ),
        last=tuple(
            "Archer Bell Cole Drake Elliot Ford Gray Hunt Ives Jordan Knight Lane Moore Nash Olsen "
            "Price Ross Stone Todd Wood".split()
        ),
        streets=tuple(
            "Elm Street|High Street|Cedar Road|Bay Road|Queen Street|Field Lane|Castle Road|"
            "Rose Street".split("|")
        ),
        host="post.net",
    ),
    "holdout": People(
        first=tuple(
            "Alice Brian Chloe David Elsa Felix Gwen Henry Irene James Kelly Liam Megan Nora Oscar "
            "Pam Ray Sara Tim Una Victor Wendy Adam Bella Colin Diana Eric Flora".split()
        ),
        last=tuple(
            "Abbott Barnes Carter Dunn Edwards Flynn Gibson Hayes Ingram Jensen Kelley Lloyd Mason "
            "Norton Ortiz Perry Rogers Scott Tyler Vega Webb York Austin Burke Chase".split()
        ),
        streets=tuple(
            "Pine Street|Maple Road|Birch Lane|Harbor Road|Valley Street|North Street|Spring Road|"
            "College Street|Meadow Lane|Tower Road|West Street|Beach Road".split("|")
        ),
        host="inbox.org",
    ),
}

GOODS = tuple(
    "lamp mug chair clock pillow kettle radio bag hat scarf knife towel mirror vase rug fan "
    "shelf toaster basket blanket".split()
)
