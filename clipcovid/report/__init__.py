"""Pages for people: one self-contained HTML file of tables, figures and images, and what it says of a study."""
