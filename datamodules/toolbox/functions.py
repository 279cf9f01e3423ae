# ruff: noqa: E501
"""The functions of the shipped corpus, one per line: 24 domains of ten; the tenth of each is never used in training.

`name | action | parameter:kind(options)=default phrase | ...` where `{}` in the phrase is the value. A parameter with a
default is optional. Kinds are those of `values.sample_value`.
"""

CATALOGUE = """
# weather
get_forecast | get the weather forecast | city:city for {} | days:int(2,14)=3 over {} days | units:enum(metric,imperial)=metric in {} units
get_air_quality | get the air quality | city:city in {} | date:date on {}
get_sunrise_time | find the time of sunrise | city:city in {} | date:date=today on {}
set_storm_alert | create a storm alert | region:region for {} | level:enum(yellow,orange,red) at {} level | phone:phone=none sent to {}
get_tide_table | show the tide table | harbour:harbour at {} | date:date for {}
compare_climate | compare the climate | cities:list(city) of {} | month:month in {}
get_uv_index | check the uv index | city:city in {} | hour:int(6,20)=12 at hour {}
report_rainfall | report rainfall | station:code at station {} | millimetres:float(1,90) of {} millimetres
get_pollen_count | check the pollen count | region:region in {} | plant:plant=grass for {}
get_snow_depth | measure the snow depth | mountain:mountain on {} | date:date on {}
# travel
book_flight | book a flight | origin:city from {} | destination:city to {} | date:date on {} | cabin:enum(economy,business,first)=economy in {} class
find_trains | find trains | origin:city from {} | destination:city to {} | after:time=00:00 leaving after {}
book_hotel | book a hotel | city:city in {} | nights:int(1,21) for {} nights | breakfast:flag=False with breakfast
rent_car | rent a car | place:city in {} | days:int(1,30) for {} days | model:enum(compact,estate,van)=compact of {} type
get_visa_rules | find the visa rules | country:country for {} | passport:country with a passport of {}
plan_route | plan a route | stops:list(city) through {} | avoid_tolls:flag=False without tolls
cancel_booking | cancel the booking | reference:code {} | refund:flag=False with a refund
get_exchange_office | find an exchange office | airport:airport at {} | currency:currency for {}
reserve_seat | reserve seat | seat:seat {} | train:code on train {}
rate_airport | rate the airport | airport:airport {} | stars:int(1,5) with {} stars
# food
find_recipe | find a recipe | dish:dish for {} | servings:int(1,12)=4 for {} people | vegetarian:flag=False without meat
order_meal | order | dish:dish {} | quantity:int(1,9) {} times | address:dict(street:street,city:city) delivered to {}
book_table | book a table | restaurant:restaurant at {} | guests:int(2,16) for {} guests | time:time at {}
get_calories | count the calories | food:ingredient in {} | grams:int(20,900)=100 for {} grams
list_allergens | list the allergens | dish:dish in {}
add_to_shopping_list | add to my shopping list | items:list(ingredient) {} | store:shop=any from {}
rate_restaurant | rate the restaurant | restaurant:restaurant {} | stars:int(1,5) with {} stars
suggest_wine | suggest a wine | dish:dish to go with {} | budget:float(5,90)=20.0 under {} euros
convert_measure | convert a kitchen measure | amount:float(1,50) of {} | source:enum(cups,spoons,ounces) from {} | target:enum(grams,millilitres) to {}
plan_menu | plan a menu | days:int(2,10) of {} days | diet:enum(vegan,keto,standard)=standard for a {} diet
# music
play_song | play the song | song:title {} | artist:person by {} | volume:int(1,100)=50 at volume {}
create_playlist | create a playlist | name:title called {} | songs:list(title) with {} | public:flag=False open to everybody
find_concerts | find concerts | artist:person by {} | city:city in {} | month:month=any during {}
get_lyrics | get the lyrics | song:title of {} | language:language=English in {}
follow_artist | follow the artist | artist:person {} | notify:flag=False with notifications
set_equalizer | set the equalizer | preset:enum(rock,jazz,speech,flat) to {} | bass:int(0,10)=5 with bass {}
buy_album | buy the album | album:title {} | format:enum(vinyl,disc,download) as {}
identify_tune | identify the tune | recording:file in {}
rate_song | rate the song | song:title {} | stars:int(1,5) with {} stars
start_radio | start a radio station | artist:person based on {} | minutes:int(10,240)=60 for {} minutes
# finance
convert_currency | convert money | amount:float(5,9000) amount {} | source:currency from {} | target:currency to {}
get_stock_price | get the stock price | company:company of {} | date:date=today on {}
transfer_money | transfer | amount:float(5,5000) {} euros | recipient:person to {} | note:title=none with note {}
compute_loan | compute the loan payment | principal:int(1000,90000) for {} | rate:float(1,12) at {} percent | years:int(2,30) over {} years
open_account | open an account | owner:person for {} | currency:currency=EUR in {} | joint:flag=False as a joint account
set_budget | set a budget | category:topic for {} | limit:int(50,4000) of {}
pay_invoice | pay the invoice | number:code {} | account:code from account {}
list_transactions | list the transactions | account:code of account {} | days:int(5,90)=30 for the last {} days
get_dividend | check the dividend | company:company of {} | year:year for {}
freeze_card | freeze the card | card:code {} | reason:enum(lost,stolen,damaged)=lost because it is {}
# calendar
create_event | create an event | title:title called {} | date:date on {} | time:time=09:00 at {} | guests:list(person)=none with {}
move_event | move the event | title:title {} | date:date to {}
delete_event | delete the event | title:title {} | notify:flag=False and tell everybody
find_free_slot | find a free slot | people:list(person) with {} | minutes:int(15,180)=30 of {} minutes
set_reminder | set a reminder | text:title about {} | time:time at {} | repeat:enum(daily,weekly,never)=never repeated {}
get_agenda | show my agenda | date:date for {}
book_room | book a meeting room | room:room {} | seats:int(2,40) for {} people | screen:flag=False with a screen
count_workdays | count the working days | start:date from {} | end:date to {}
start_timer | start a timer | minutes:int(1,180) of {} minutes | label:title=timer named {}
share_calendar | share my calendar | person:person with {} | access:enum(read,write)=read with {} access
# messaging
send_email | send an email | to:email to {} | subject:title with subject {} | urgent:flag=False marked urgent
send_sms | send a text message | phone:phone to {} | text:title saying {}
create_group | create a group chat | name:title named {} | members:list(person) with {}
mute_chat | mute the chat | person:person with {} | hours:int(1,72)=8 for {} hours
search_messages | search my messages | text:topic about {} | sender:person=anyone from {}
forward_message | forward the message | message_id:code {} | to:person to {}
block_contact | block the contact | person:person {} | report:flag=False and report it
schedule_call | schedule a call | person:person with {} | date:date on {} | time:time at {}
translate_message | translate the message | message_id:code {} | language:language into {}
set_status | set my status | text:title to {} | minutes:int(5,480)=60 for {} minutes
# shopping
search_products | search for | product:product {} | max_price:float(5,900)=none under {} euros | colour:colour=any in {}
add_to_cart | put in the cart | product:product {} | quantity:int(1,20)=1 {} pieces
track_parcel | track the parcel | number:code {} | carrier:company=any sent by {}
return_item | return the item | order:code of order {} | reason:enum(broken,late,unwanted) because it is {}
compare_prices | compare the prices | product:product of {} | shops:list(shop) at {}
apply_coupon | apply the coupon | coupon:code {} | order:code to order {}
check_stock | check the stock | product:product of {} | shop:shop at {} | size:enum(small,medium,large)=medium in size {}
write_review | write a review | product:product of {} | stars:int(1,5) with {} stars | text:title=none saying {}
create_wishlist | create a wish list | name:title called {} | items:list(product) with {}
gift_wrap | wrap as a gift | product:product {} | message:title=none with message {}
# health
book_doctor | book an appointment | doctor:person with doctor {} | date:date on {} | online:flag=False by video
log_weight | log my weight | kilograms:float(40,140) of {} kilograms | date:date=today on {}
compute_bmi | compute the body mass index | kilograms:float(40,140) for {} kilograms | metres:float(1,2) and {} metres
find_pharmacy | find a pharmacy | city:city in {} | open_now:flag=False open now
set_medicine_alarm | set a medicine alarm | medicine:medicine for {} | times:list(time) at {}
log_sleep | log my sleep | hours:float(3,12) of {} hours | quality:enum(good,fair,poor)=fair with {} quality
check_interaction | check the interaction | medicines:list(medicine) between {}
get_vaccines | list the vaccines | country:country for {} | age:int(1,90)=30 at age {}
count_steps | count my steps | date:date on {}
find_blood_donation | find a blood donation | city:city in {} | group:enum(A,B,AB,O) for group {}
# fitness
log_run | log a run | kilometres:float(2,42) of {} kilometres | minutes:int(10,300) in {} minutes
create_workout | create a workout | name:title called {} | exercises:list(exercise) with {} | rounds:int(1,8)=3 for {} rounds
find_gym | find a gym | city:city in {} | pool:flag=False with a pool
join_class | join the class | name:exercise for {} | date:date on {} | level:enum(beginner,advanced)=beginner at {} level
set_goal | set a goal | exercise:exercise for {} | times:int(1,7) {} times a week
burned_calories | count the burned calories | exercise:exercise for {} | minutes:int(5,240) of {} minutes
get_ranking | get the ranking | player:person of {} | league:league in the {}
book_court | book a court | sport:sport for {} | time:time at {} | indoor:flag=False indoors
hire_trainer | hire the trainer | name:person {} | sessions:int(1,20) for {} sessions
get_heart_rate | check the heart rate | date:date on {} | device:code=any from device {}
# home
set_thermostat | set the thermostat | room:room in {} | degrees:float(15,26) to {} degrees
switch_light | switch the light | room:room in {} | state:enum(on,off) {} | brightness:int(1,100)=100 at brightness {}
lock_door | lock the door | door:room of {} | minutes:int(1,90)=0 for {} minutes
start_vacuum | start the vacuum | rooms:list(room) in {} | quiet:flag=False in quiet mode
set_alarm_system | arm the alarm system | mode:enum(home,away,night) in {} mode | delay:int(10,120)=30 after {} seconds
water_garden | water the garden | zone:code in zone {} | minutes:int(2,60) for {} minutes
open_blinds | open the blinds | room:room in {} | percent:int(10,100)=100 to {} percent
check_energy_use | check the energy use | device:device of {} | days:int(2,60)=7 for {} days
run_scene | run the scene | name:title {} | time:time=now at {}
preheat_oven | preheat the oven | degrees:int(120,250) to {} degrees | fan:flag=False with the fan
# maps
get_directions | get directions | origin:street from {} | destination:street to {} | mode:enum(walking,driving,cycling)=driving by {}
find_parking | find parking | street:street near {} | max_price:float(1,15)=none under {} euros
get_distance | measure the distance | origin:city between {} | destination:city and {}
find_nearby | find nearby | kind:place {} | street:street around {} | radius:int(100,5000)=1000 within {} metres
geocode_address | locate the address | address:dict(street:street,city:city) {}
report_traffic | report a traffic jam | road:road on {} | minutes:int(5,120) of {} minutes
save_place | save the place | name:title as {} | street:street at {}
get_elevation | check the elevation | mountain:mountain of {}
share_location | share my location | person:person with {} | minutes:int(10,300)=60 for {} minutes
find_charger | find a charger | city:city in {} | plug:enum(fast,slow)=fast with a {} plug
# news
search_news | search the news | topic:topic about {} | country:country=any from {} | days:int(1,30)=7 of the last {} days
get_headlines | get the headlines | section:enum(world,sports,science,business) in {} | count:int(3,20)=5 limited to {}
subscribe_topic | subscribe to news | topic:topic about {} | email:email at {}
summarize_article | summarize the article | title:title {} | sentences:int(2,9)=3 in {} sentences
fact_check | check the claim | claim:title {}
save_article | save the article | title:title {} | folder:topic=reading under {}
list_sources | list the sources | country:country in {} | language:language=English in {}
get_weather_news | find weather news | region:region for {}
find_interview | find an interview | person:person with {} | year:year=any from {}
read_column | read the column | author:person by {} | date:date of {}
# books
search_books | search books | topic:topic about {} | author:person=any by {} | language:language=English in {}
borrow_book | borrow the book | title:title {} | weeks:int(1,8)=3 for {} weeks
renew_loan | renew the loan | loan:code {} | weeks:int(1,8)=2 for {} weeks
reserve_book | reserve the book | title:title {} | branch:city at the library of {}
rate_book | rate the book | title:title {} | stars:int(1,5) with {} stars
get_author | look for the author | book:title of {}
create_reading_list | create a reading list | name:title named {} | books:list(title) with {}
count_pages | count the pages | book:title of {} | edition:int(1,9)=1 in edition {}
cite_book | cite the book | title:title {} | style:enum(apa,mla,chicago) in {} style
donate_books | donate books | count:int(2,60) {} copies | branch:city to the library of {}
# movies
find_movies | find movies | genre:genre of the {} genre | year:year=any from {} | actor:person=any with {}
book_cinema | book cinema tickets | film:title for {} | seats:int(1,10) {} seats | date:date on {}
rate_movie | rate the movie | film:title {} | stars:int(1,5) with {} stars
get_cast | list the cast | film:title of {}
stream_movie | stream the movie | film:title {} | subtitles:language=none with subtitles in {}
list_showtimes | list the showtimes | film:title of {} | city:city in {}
recommend_series | recommend a series | genre:genre of the {} genre | seasons:int(1,12)=3 with up to {} seasons
get_box_office | get the box office | film:title of {} | country:country=any in {}
add_watchlist | add to the watch list | films:list(title) {}
buy_poster | buy a poster | film:title of {} | width:int(30,120)=60 that is {} centimetres wide
# education
enroll_course | enroll in the course | course:topic on {} | student:person for {} | online:flag=False online
get_grades | get the grades | student:person of {} | year:year=any in {}
create_quiz | create a quiz | topic:topic about {} | questions:int(3,40) with {} questions | level:enum(easy,hard)=easy that is {}
submit_homework | submit the homework | file:file in {} | course:topic for the course on {}
find_tutor | find a tutor | subject:topic for {} | city:city=online in {} | max_rate:float(8,90)=none under {} euros
schedule_exam | schedule the exam | course:topic on {} | date:date on {} | room:room=main in {}
define_word | define the word | word:plant {} | language:language=English in {}
solve_equation | solve the equation | degree:int(1,4) of degree {} | coefficients:ilist(1,99) with coefficients {}
get_scholarships | find scholarships | country:country in {} | subject:topic for {}
make_flashcards | make flash cards | topic:topic about {} | count:int(5,60)=20 with {} cards
# maths
add_numbers | add the numbers | numbers:ilist(1,999) {}
compute_average | compute the average | values:ilist(1,999) of {}
compute_area | compute the area | shape:enum(circle,square,triangle) of a {} | size:float(1,99) of size {}
solve_quadratic | solve the quadratic | a:int(1,99) with a equal to {} | b:int(1,99) b equal to {} | c:int(1,99) and c equal to {}
roll_dice | roll dice | count:int(1,12) {} times | sides:int(4,100)=6 with {} sides
factor_number | factor the number | number:int(10,99999) {}
convert_base | convert the number | number:int(2,9999) {} | base:int(2,36) to base {}
random_number | draw a random number | low:int(1,99) from {} | high:int(100,999) to {} | unique:flag=False without repeats
compute_percentage | compute the percentage | part:float(1,90) that {} | whole:float(91,999) is of {}
fit_line | fit a line | x:ilist(1,99) with x {} | y:ilist(1,99) and y {}
# files
upload_file | upload the file | file:file {} | folder:topic to folder {} | public:flag=False and make it public
rename_file | rename the file | file:file {} | name:file to {}
compress_files | compress the files | files:list(file) {} | level:int(1,9)=6 at level {}
search_files | search files | text:topic about {} | extension:enum(pdf,txt,csv)=any of type {}
share_file | share the file | file:file {} | email:email with {} | days:int(1,60)=7 for {} days
convert_file | convert the file | file:file {} | format:enum(pdf,html,epub) to {}
delete_file | delete the file | file:file {} | permanent:flag=False for ever
encrypt_file | encrypt the file | file:file {} | key:code with key {}
count_words | count the words | file:file in {} | unique:flag=False without repeats
restore_version | restore the file | file:file {} | version:int(1,40) to version {}
# software
create_ticket | create a ticket | title:title called {} | priority:enum(low,high,critical)=low with {} priority | assignee:person=nobody for {}
deploy_service | deploy the service | service:service {} | version:version at version {} | region:region=home in {}
restart_server | restart the server | server:server {} | force:flag=False by force
run_tests | run the tests | service:service of {} | workers:int(2,32)=4 with {} workers
get_logs | get the logs | service:service of {} | minutes:int(5,600)=60 of the last {} minutes
merge_branch | merge the branch | branch:branch {} | squash:flag=False as one commit
scale_service | scale the service | service:service {} | replicas:int(2,64) to {} replicas
create_user | create a user | name:person for {} | email:email with email {} | admin:flag=False as administrator
query_database | count the rows | table:topic of table {} | limit:int(10,5000)=100 up to {}
block_address | block the address | address:ip {} | hours:int(1,72)=24 for {} hours
# work
request_leave | request leave | start:date from {} | end:date to {} | reason:title=none for {}
post_job | post a job | title:job for a {} | city:city in {} | salary:int(1200,9000)=none paying {}
search_jobs | search jobs | title:job as a {} | city:city in {} | remote:flag=False with remote work
log_hours | log hours | project:project on {} | hours:float(1,12) of {} hours
approve_expense | approve the expense | number:code {} | amount:float(5,900) of {} euros
invite_candidate | invite the candidate | name:person {} | date:date on {} | time:time at {}
assign_task | assign the task | task:title {} | person:person to {} | due:date=none due on {}
get_payslip | get the payslip | person:person of {} | month:month for {}
create_report | create a report | project:project on {} | sections:list(topic) with {}
rate_candidate | rate the candidate | name:person {} | score:int(1,10) with a score of {}
# pets
book_vet | book a visit at the vet | pet:pet for {} | date:date on {}
log_feeding | log a meal | pet:pet for {} | grams:int(10,900) of {} grams
find_breed | find a breed | animal:enum(dog,cat,rabbit) of {} | size:enum(small,medium,large)=medium of {} size
adopt_pet | adopt the pet | pet:pet {} | owner:person for {}
find_sitter | find a sitter | pet:pet for {} | nights:int(1,14) for {} nights | walks:flag=False with walks
order_pet_food | order pet food | brand:company by {} | kilograms:float(1,20) of {} kilograms
register_chip | register the chip | chip:code {} | pet:pet for {}
train_trick | teach a trick | pet:pet to {} | trick:exercise called {}
get_vaccination | check the vaccination | pet:pet of {} | year:year=any in {}
report_lost_pet | report the lost pet | pet:pet {} | street:street last seen near {}
# garden
water_plant | water the plant | plant:plant {} | litres:float(0.5,9) with {} litres
plant_seeds | plant seeds | plant:plant of {} | rows:int(1,12) in {} rows | greenhouse:flag=False in the greenhouse
identify_plant | identify the plant | photo:file in {}
get_planting_date | find the planting date | plant:plant for {} | region:region in {}
order_seeds | order seeds | plants:list(plant) of {} | organic:flag=False that are organic
check_soil | check the soil | bed:code of bed {} | depth:int(5,60)=20 at {} centimetres
prune_tree | prune the tree | tree:plant {} | month:month in {}
treat_pest | treat the pest | pest:pest {} | plant:plant on {}
get_harvest | estimate the harvest | plant:plant of {} | area:float(2,90) on {} square metres
compost_mix | mix compost | litres:int(10,200) of {} litres | greens:float(0.1,0.9)=0.5 with a share of {}
# events
buy_ticket | buy tickets | event:title for {} | count:int(1,9) {} tickets | category:enum(standing,seated)=seated in the {} area
find_events | find events | city:city in {} | date:date on {} | free:flag=False without entry fee
cancel_ticket | cancel the ticket | number:code {} | refund:flag=False with a refund
rent_venue | rent a venue | city:city in {} | guests:int(20,900) for {} guests | date:date on {}
hire_band | hire the band | band:title {} | hours:float(1,8) for {} hours
send_invitations | send invitations | event:title to {} | people:list(person) for {}
order_cake | order a cake | flavour:ingredient with {} | people:int(4,60) for {} people | text:title=none saying {}
print_badges | print badges | event:title for {} | names:list(person) with the names {}
rate_event | rate the event | event:title {} | stars:int(1,5) with {} stars
reserve_stand | reserve a stand | fair:title at {} | metres:int(2,40) of {} metres
# energy
read_meter | read the meter | meter:code {} | date:date=today on {}
compare_tariffs | compare the tariffs | city:city in {} | usage:int(500,9000) for {} units | green:flag=False from clean sources
report_outage | report an outage | street:street on {} | since:time since {}
estimate_solar | estimate solar power | panels:int(2,60) with {} panels | city:city in {} | tilt:int(5,60)=30 tilted by {} degrees
charge_battery | charge the battery | battery:code {} | percent:int(20,100)=100 to {} percent
set_tariff | set the tariff | meter:code of meter {} | plan:enum(day,night,flat) to {}
get_grid_load | get the grid load | region:region in {} | time:time=now at {}
order_heat_pump | order a heat pump | power:float(3,20) of {} kilowatts | street:street for {}
book_inspection | book an inspection | street:street at {} | date:date on {} | gas:flag=False including gas
get_oil_price | check the oil price | country:country in {} | litres:int(500,5000) for {} litres
""".strip()
